//! The serving certificate: TLS 1.2 and 1.3 by rustls, with a certificate that can be replaced while
//! connections are open.

use std::{
    fmt,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};

use x509_parser::extensions::GeneralName;

use bundle::Anchor;
use client::Clients;

pub mod authority;
pub mod bundle;
pub mod client;
pub mod files;
pub mod rotation;

/// Why a certificate cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} holds no {what} in PEM form")]
    Empty {
        /// The file.
        path: String,
        /// What was looked for.
        what: &'static str,
    },
    /// A file is not PEM, or what it holds is not what its header says.
    #[error("{path} is no PEM file: {error}")]
    Pem {
        /// The file.
        path: String,
        /// Why.
        error: rustls::pki_types::pem::Error,
    },
    /// Key and certificate do not belong together, or the key is of no use.
    #[error("certificate and key do not make a pair: {0}")]
    Pair(#[source] rustls::Error),
    /// The certificate is not readable as X.509.
    #[error("the certificate is not readable: {0}")]
    Certificate(String),
    /// The certificate is not valid now.
    #[error("the certificate is not valid now: it holds from {from} until {until}")]
    Expired {
        /// The first moment.
        from: String,
        /// The last moment.
        until: String,
    },
    /// The key is not readable.
    #[error("the private key is not readable: {0}")]
    Key(String),
    /// The key is another's.
    #[error("the private key is not that of its certificate")]
    Stranger,
    /// The certificate is another authority's.
    #[error("the certificate does not chain to what {path} holds: {error}")]
    Untrusted {
        /// The file of the authority.
        path: String,
        /// Why not.
        error: String,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// No cryptography is installed.
    #[error("no cryptography provider is installed")]
    NoProvider,
    /// The TLS library refuses the settings.
    #[error("cannot set up TLS: {0}")]
    Setup(#[source] rustls::Error),
}

/// A certificate and its key, checked to belong together and to be valid now.
#[derive(Clone)]
pub struct Identity {
    key: Arc<CertifiedKey>,
    /// When the certificate begins to hold.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
    /// The authority that signed it, where that is one of ours.
    pub issuer: Option<Anchor>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Checks a chain (leaf first) and its key.
    ///
    /// # Errors
    /// Where they do not belong together, or the leaf does not hold at `now`.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        now: SystemTime,
    ) -> Result<Self, TlsError> {
        let (not_before, not_after) = match chain.first() {
            Some(leaf) => validity(leaf)?,
            None => return Err(TlsError::Certificate("the chain is empty".to_owned())),
        };
        if now < not_before || now >= not_after {
            return Err(TlsError::Expired {
                from: moment(not_before),
                until: moment(not_after),
            });
        }
        let provider = CryptoProvider::get_default().ok_or(TlsError::NoProvider)?;
        let key = CertifiedKey::from_der(chain, key, provider).map_err(TlsError::Pair)?;
        Ok(Self {
            key: Arc::new(key),
            not_before,
            not_after,
            issuer: None,
        })
    }

    /// The certificates that are sent, the leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// Whether it is the same certificate.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.key.cert == other.key.cert
    }

    /// When to replace it: after two thirds of its life.
    pub fn renew_at(&self) -> SystemTime {
        two_thirds(self.not_before, self.not_after)
    }
}

/// When two thirds of a life are over.
fn two_thirds(from: SystemTime, until: SystemTime) -> SystemTime {
    from + until.duration_since(from).unwrap_or_default() * 2 / 3
}

/// When a certificate begins to hold and ends.
fn validity(certificate: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), TlsError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| TlsError::Certificate(error.to_string()))?;
    let at = |seconds: i64| {
        let since = Duration::from_secs(seconds.unsigned_abs());
        if seconds < 0 {
            UNIX_EPOCH
        } else {
            UNIX_EPOCH + since
        }
    };
    let validity = parsed.validity();
    Ok((
        at(validity.not_before.timestamp()),
        at(validity.not_after.timestamp()),
    ))
}

/// The first alternative name of a certificate, a DNS name or an address.
fn first_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    names
        .value
        .general_names
        .iter()
        .find_map(|name| match name {
            // A wildcard stands for any one label.
            GeneralName::DNSName(name) => Some(name.replacen('*', "any", 1)),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        })
}

/// An address of a certificate: 4 or 16 bytes (RFC 5280, 4.2.1.6).
fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// A time as people read it.
pub(crate) fn moment(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "?".to_owned(), |stamp| stamp.to_string())
}

/// Hands out the certificate that is current when a connection begins.
#[derive(Debug)]
pub struct Resolver {
    identity: ArcSwapOption<Identity>,
}

impl Resolver {
    /// Begins with one certificate; without one every handshake fails until there is.
    pub fn new(identity: Option<Identity>) -> Self {
        Self {
            identity: ArcSwapOption::from_pointee(identity),
        }
    }

    /// Serves another certificate from now on; open connections go on with theirs.
    pub fn replace(&self, identity: Identity) {
        self.identity.store(Some(Arc::new(identity)));
    }

    /// The certificate served now, if there is one yet.
    pub fn current(&self) -> Option<Arc<Identity>> {
        self.identity.load_full()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let identity = self.identity.load();
        Some(Arc::clone(&identity.as_ref()?.key))
    }
}

/// The TLS settings of the admission port; with `clients`, only those are let in.
///
/// # Errors
/// Where the cryptography provider is missing or refuses them.
pub fn server_config(
    resolver: Arc<Resolver>,
    clients: Option<Arc<Clients>>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = CryptoProvider::get_default().ok_or(TlsError::NoProvider)?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(TlsError::Setup)?;
    let mut config = match clients {
        None => builder.with_no_client_auth().with_cert_resolver(resolver),
        Some(clients) => {
            let mut config = builder
                .with_client_cert_verifier(clients)
                .with_cert_resolver(resolver);
            // A session that is resumed is not verified again: a client would stay let in after its
            // authority was taken away.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            config
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
