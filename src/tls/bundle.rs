//! The certificates that a client trusts us by: what stands in `caBundle` and in the Secret's `ca.crt`.

use std::{cmp::Ordering, sync::Arc, time::SystemTime};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};

use super::{TlsError, moment, validity};

/// The certificate of an authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// When it begins to hold.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
    /// The certificate itself.
    pub certificate: CertificateDer<'static>,
}

/// By age.
impl Ord for Anchor {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |anchor: &Self| (anchor.not_before, anchor.not_after);
        key(self)
            .cmp(&key(other))
            .then_with(|| self.certificate.as_ref().cmp(other.certificate.as_ref()))
    }
}

impl PartialOrd for Anchor {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Anchor {
    /// Reads a certificate.
    ///
    /// # Errors
    /// Where it is no X.509 certificate.
    pub fn new(certificate: CertificateDer<'static>) -> Result<Self, TlsError> {
        let (not_before, not_after) = validity(&certificate)?;
        Ok(Self {
            not_before,
            not_after,
            certificate,
        })
    }

    /// When the next one should follow: after two thirds of its life.
    pub fn renew_at(&self) -> SystemTime {
        super::two_thirds(self.not_before, self.not_after)
    }

    /// Who it says it is; the DER's length where it says nothing.
    pub fn subject(&self) -> String {
        x509_parser::parse_x509_certificate(&self.certificate).map_or_else(
            |_| format!("{} bytes", self.certificate.len()),
            |(_, parsed)| parsed.subject().to_string(),
        )
    }

    /// Its SHA-256 fingerprint, as `openssl x509 -fingerprint -sha256` prints it but for the colons.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.certificate)
    }

    /// A line about it for people.
    pub fn describe(&self) -> String {
        format!(
            "{} ({}), until {}",
            self.subject(),
            short(&self.fingerprint()),
            moment(self.not_after)
        )
    }
}

/// The beginning of a fingerprint, enough to tell one from another.
pub fn short(fingerprint: &str) -> &str {
    fingerprint.get(..16).unwrap_or(fingerprint)
}

/// The SHA-256 fingerprint of a certificate, in lower-case hexadecimal digits.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    if let Some(suite) = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13() {
        for byte in suite.common.hash_provider.hash(certificate).as_ref() {
            let _ = write!(text, "{byte:02x}");
        }
    }
    text
}

/// The certificates of a PEM text, in its order, each once.
///
/// # Errors
/// Where the text is not PEM, or one of them no certificate. A text without any is an empty list.
pub fn read(pem: &[u8]) -> Result<Vec<Anchor>, TlsError> {
    let mut anchors: Vec<Anchor> = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| TlsError::Certificate(error.to_string()))?;
        let anchor = Anchor::new(certificate)?;
        if !anchors.contains(&anchor) {
            anchors.push(anchor);
        }
    }
    Ok(anchors)
}

/// The certificates as PEM, in an order that does not depend on who writes them: the newest first.
pub fn write<'a>(anchors: impl IntoIterator<Item = &'a Anchor>) -> Vec<u8> {
    let mut anchors: Vec<&Anchor> = anchors.into_iter().collect();
    anchors.sort_by(|a, b| b.cmp(a));
    anchors.dedup();
    anchors
        .into_iter()
        .flat_map(|anchor| pem("CERTIFICATE", &anchor.certificate).into_bytes())
        .collect()
}

/// A PEM text (RFC 7468).
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    let base64 = STANDARD.encode(der);
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

/// Whether who trusts these certificates takes a server's chain (leaf first) for `name` at `now`, as a
/// TLS client does.
///
/// # Errors
/// Why not.
pub fn verify(
    anchors: &[Anchor],
    chain: &[CertificateDer<'_>],
    name: &str,
    now: SystemTime,
) -> Result<(), String> {
    let provider = CryptoProvider::get_default().ok_or("no cryptography provider is installed")?;
    let mut roots = RootCertStore::empty();
    for anchor in anchors {
        // What no client takes verifies nothing.
        let _ = roots.add(anchor.certificate.clone());
    }
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .build()
            .map_err(|error| error.to_string())?;
    let (leaf, intermediates) = chain.split_first().ok_or("the chain is empty")?;
    let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
    let now = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|error| error.to_string())?;
    verifier
        .verify_server_cert(
            leaf,
            intermediates,
            &name,
            &[],
            UnixTime::since_unix_epoch(now),
        )
        .map(|_| ())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tls::authority::{Authority, Lives};

    #[test]
    fn a_bundle_reads_back_and_its_order_is_that_of_age() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let now = SystemTime::now();
        let make = |at| Authority::new(at, Lives::default()).unwrap();
        let old = make(now - Duration::from_secs(100));
        let new = make(now);
        let text = write([old.anchor(), new.anchor()]);
        assert_eq!(text, write([new.anchor(), old.anchor(), new.anchor()]));
        let anchors = read(&text).unwrap();
        assert_eq!(anchors, [new.anchor().clone(), old.anchor().clone()]);
        assert!(read(b"nothing").unwrap().is_empty());
        let half = text.split_at(text.len() / 4).0;
        assert!(read(half).is_err());
    }

    #[test]
    fn a_leaf_is_verified_by_its_own_authority_under_its_own_names() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let now = SystemTime::now();
        let make = || Authority::new(now, Lives::default()).unwrap();
        let (ours, other) = (make(), make());
        let leaf = ours.sign(&["a.b.svc".to_owned()], now).unwrap();
        let verify = |anchor: &Anchor, name, at| {
            super::verify(std::slice::from_ref(anchor), leaf.chain(), name, at)
        };
        assert_eq!(verify(ours.anchor(), "a.b.svc", now), Ok(()));
        assert!(verify(other.anchor(), "a.b.svc", now).is_err());
        assert!(verify(ours.anchor(), "b.b.svc", now).is_err());
        let over = leaf.not_after + Duration::from_secs(1);
        assert!(verify(ours.anchor(), "a.b.svc", over).is_err());
    }
}
