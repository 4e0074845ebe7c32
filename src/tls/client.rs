//! Who may speak to the admission port: clients with a certificate of a given authority, and, where
//! names are given, with one of these.

use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use x509_parser::{extensions::GeneralName, prelude::X509Certificate};

use super::{TlsError, files};

/// Why a client with a good certificate is turned away.
#[derive(Debug, thiserror::Error)]
#[error("the client's certificate is for {found}, and none of that is let in by --client-name")]
struct Unlisted {
    found: String,
}

/// What is in force: the file's bytes and what they came to.
#[derive(Debug)]
struct Loaded {
    pem: Vec<u8>,
    verifier: Arc<dyn ClientCertVerifier>,
}

/// The clients that are let in. The authority is read from a file, again and again.
#[derive(Debug)]
pub struct Clients {
    path: PathBuf,
    names: Vec<String>,
    loaded: ArcSwap<Loaded>,
}

impl Clients {
    /// Reads the file. Without names, every certificate of the authority is let in.
    ///
    /// # Errors
    /// Where the file cannot be read or holds no certificate of an authority.
    pub fn load(path: PathBuf, names: Vec<String>) -> Result<Self, TlsError> {
        let loaded = read(&path)?;
        Ok(Self {
            path,
            names,
            loaded: ArcSwap::from_pointee(loaded),
        })
    }

    /// Reads the file again. True where it holds something else. On an error what was in force stays.
    ///
    /// # Errors
    /// As [`Clients::load`].
    pub fn reload(&self) -> Result<bool, TlsError> {
        let loaded = read(&self.path)?;
        if loaded.pem == self.loaded.load().pem {
            return Ok(false);
        }
        self.loaded.store(Arc::new(loaded));
        Ok(true)
    }

    fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.loaded.load().verifier)
    }

    /// Whether a certificate that the authority signed has a name that is let in: its common name or
    /// one of its alternative names.
    fn admits(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        if self.names.is_empty() {
            return Ok(());
        }
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let names = names(&parsed);
        if names.iter().any(|name| self.names.contains(name)) {
            return Ok(());
        }
        let found = if names.is_empty() {
            "no name".to_owned()
        } else {
            names.join(", ")
        };
        let unlisted = OtherError(Arc::new(Unlisted { found }));
        Err(Error::InvalidCertificate(CertificateError::Other(unlisted)))
    }
}

/// The common names and alternative names of a certificate.
fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let common = certificate.subject().iter_common_name();
    let mut names: Vec<String> = common
        .filter_map(|name| name.as_str().ok().map(str::to_owned))
        .collect();
    if let Ok(Some(alternative)) = certificate.subject_alternative_name() {
        for name in &alternative.value.general_names {
            if let GeneralName::DNSName(name)
            | GeneralName::RFC822Name(name)
            | GeneralName::URI(name) = name
            {
                names.push((*name).to_owned());
            }
        }
    }
    names
}

fn read(path: &std::path::Path) -> Result<Loaded, TlsError> {
    let pem = files::bundle(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in files::certificates(path)? {
        roots.add(certificate).map_err(TlsError::Setup)?;
    }
    let provider = CryptoProvider::get_default().ok_or(TlsError::NoProvider)?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .build()
            .map_err(|error| TlsError::Certificate(error.to_string()))?;
    Ok(Loaded { pem, verifier })
}

impl ClientCertVerifier for Clients {
    /// None: the authority may be another by the time that the client has chosen.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .verifier()
            .verify_client_cert(certificate, intermediates, now)?;
        self.admits(certificate)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier()
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier()
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier().supported_verify_schemes()
    }
}
