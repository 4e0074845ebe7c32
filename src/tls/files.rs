//! A certificate and key from files, as cert-manager or a site's own tooling writes them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{Identity, TlsError};

/// What was read from files: a pair, and what clients are to trust.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The certificate and its key.
    pub identity: Identity,
    /// Who signed it, PEM.
    pub bundle: Vec<u8>,
}

/// Certificate files that are looked at again and again, whole: the kubelet swaps a link above the
/// files of a projected volume and leaves their own times alone.
#[derive(Debug)]
pub struct Files {
    certificate: PathBuf,
    key: PathBuf,
    authority: PathBuf,
    /// What was served last of the three, byte for byte.
    taken: [Vec<u8>; 3],
}

impl Files {
    /// Reads certificate, key and authority.
    ///
    /// # Errors
    /// As [`load`]; and where the certificate does not chain to the authority.
    pub fn load(
        certificate: &Path,
        key: &Path,
        authority: &Path,
        now: SystemTime,
    ) -> Result<(Self, Loaded), TlsError> {
        let mut files = Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            authority: authority.to_owned(),
            taken: [const { Vec::new() }; 3],
        };
        let loaded = files.look(now)?.ok_or_else(|| TlsError::Empty {
            path: certificate.display().to_string(),
            what: "certificate",
        })?;
        Ok((files, loaded))
    }

    /// Looks at the files. Some when they hold something else than what was taken before.
    ///
    /// # Errors
    /// As [`load`]: also for half of a pair that is just being written. It is looked at again.
    pub fn look(&mut self, now: SystemTime) -> Result<Option<Loaded>, TlsError> {
        let before = self.bytes()?;
        if before == self.taken {
            return Ok(None);
        }
        let loaded = Loaded {
            identity: load(&self.certificate, &self.key, now)?,
            bundle: bundle(&self.authority)?,
        };
        chains(&loaded, &self.authority, now)?;
        // Nothing moved while they were read: the three belong together.
        if self.bytes()? != before {
            return Ok(None);
        }
        self.taken = before;
        Ok(Some(loaded))
    }

    fn bytes(&self) -> Result<[Vec<u8>; 3], TlsError> {
        Ok([
            read(&self.certificate)?,
            read(&self.key)?,
            read(&self.authority)?,
        ])
    }
}

/// Whether who trusts the bundle takes the certificate: a leaf may hold still and be another
/// authority's by now. A bundle that names the leaf itself trusts it, as Go's crypto/x509 does.
fn chains(loaded: &Loaded, authority: &Path, now: SystemTime) -> Result<(), TlsError> {
    let anchors = super::bundle::read(&loaded.bundle)?;
    let chain = loaded.identity.chain();
    let itself = chain
        .first()
        .is_some_and(|leaf| anchors.iter().any(|anchor| anchor.certificate == *leaf));
    if itself {
        return Ok(());
    }
    let name = chain.first().and_then(super::first_name).ok_or_else(|| {
        TlsError::Certificate(
            "it has no alternative name, and API servers read no other".to_owned(),
        )
    })?;
    super::bundle::verify(&anchors, chain, &name, now).map_err(|error| TlsError::Untrusted {
        path: authority.display().to_string(),
        error,
    })
}

/// Reads a chain and its key.
///
/// # Errors
/// Where a file is missing or is not PEM, the two do not belong together, or the certificate does
/// not hold at `now`.
pub fn load(certificate: &Path, key: &Path, now: SystemTime) -> Result<Identity, TlsError> {
    let chain = certificates(certificate)?;
    let text = read(key)?;
    let secret = PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => TlsError::Empty {
            path: key.display().to_string(),
            what: "private key",
        },
        error => TlsError::Pem {
            path: key.display().to_string(),
            error,
        },
    })?;
    Identity::new(chain, secret, now)
}

/// The certificates of a PEM file.
///
/// # Errors
/// Where the file cannot be read or holds none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let shown = || path.display().to_string();
    let chain = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| TlsError::Pem {
            path: shown(),
            error,
        })?;
    if chain.is_empty() {
        return Err(TlsError::Empty {
            path: shown(),
            what: "certificate",
        });
    }
    Ok(chain)
}

/// The text of a PEM file that holds certificates, to be published for others to trust.
///
/// # Errors
/// Where the file cannot be read or holds none.
pub fn bundle(path: &Path) -> Result<Vec<u8>, TlsError> {
    certificates(path)?;
    read(path)
}

/// The bytes of a file.
fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| TlsError::Read {
        path: path.display().to_string(),
        error,
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn errors_name_the_file_and_what_is_wrong_with_it() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let make = |until: i32| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(until, 1, 1);
            (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
        };
        let (cert, key) = make(2100);
        let (_, other) = make(2100);
        let (old, old_key) = make(2021);
        let now = SystemTime::now();
        let says = |cert: &str, key: &str| {
            load(&at("tls.crt", cert), &at("tls.key", key), now)
                .unwrap_err()
                .to_string()
        };
        assert!(load(&at("a.crt", &cert), &at("a.key", &key), now).is_ok());
        assert!(says("", &key).ends_with("tls.crt holds no certificate in PEM form"));
        assert!(says(&cert, "no key").ends_with("tls.key holds no private key in PEM form"));
        assert!(says(&cert, &other).starts_with("certificate and key do not make a pair"));
        assert!(says(&old, &old_key).contains("until 2021-01-01T00:00:00Z"));
        let missing = load(Path::new("/nonexistent/tls.crt"), Path::new("/x"), now);
        assert!(
            missing
                .unwrap_err()
                .to_string()
                .starts_with("cannot read /nonexistent/tls.crt")
        );
    }
}
