//! Certificate authorities, and the leaves they sign.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{
    Identity, TlsError,
    bundle::{self, Anchor},
    moment,
};

/// Clocks of an API server and ours may differ by this much.
const SKEW: Duration = Duration::from_secs(5 * 60);

/// How long certificates hold; each is replaced after two thirds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lives {
    /// Of an authority.
    pub authority: Duration,
    /// Of a leaf, which never outlives its authority.
    pub leaf: Duration,
}

impl Default for Lives {
    fn default() -> Self {
        Self {
            authority: Duration::from_secs(365 * 86_400),
            leaf: Duration::from_secs(7 * 86_400),
        }
    }
}

/// A certificate authority: its certificate, and the key that signs.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    anchor: Anchor,
    leaf_life: Duration,
}

impl Authority {
    /// Makes one.
    ///
    /// # Errors
    /// Where keys cannot be made.
    pub fn new(now: SystemTime, lives: Lives) -> Result<Self, TlsError> {
        let mut params = CertificateParams::default();
        // Names that differ let a client pick the right one of a bundle.
        params.distinguished_name = name(&format!("gangplank CA {}", moment(now)));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - skew(lives.authority)).into();
        params.not_after = (now + lives.authority).into();
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            issuer: Issuer::new(params, key),
            anchor: Anchor::new(certificate.der().clone())?,
            leaf_life: lives.leaf,
        })
    }

    /// Reads one.
    ///
    /// # Errors
    /// Where certificate or key is not readable, the two do not belong together, or the certificate is
    /// not an authority's.
    pub fn from_pem(certificate: &[u8], key: &[u8], lives: Lives) -> Result<Self, TlsError> {
        let mut anchors = bundle::read(certificate)?;
        let anchor = match (anchors.pop(), anchors.is_empty()) {
            (Some(anchor), true) => anchor,
            (None, _) => return Err(TlsError::Certificate("there is none".to_owned())),
            (Some(_), false) => {
                return Err(TlsError::Certificate("there is more than one".to_owned()));
            }
        };
        let key = std::str::from_utf8(key)
            .map_err(|error| TlsError::Key(error.to_string()))
            .and_then(|key| {
                KeyPair::from_pem(key).map_err(|error| TlsError::Key(error.to_string()))
            })?;
        {
            let (_, parsed) = x509_parser::parse_x509_certificate(&anchor.certificate)
                .map_err(|error| TlsError::Certificate(error.to_string()))?;
            if !parsed.is_ca() {
                return Err(TlsError::Certificate(
                    "it is not that of an authority".to_owned(),
                ));
            }
            if parsed.public_key().raw != key.subject_public_key_info() {
                return Err(TlsError::Stranger);
            }
        }
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&anchor.certificate, key)?,
            anchor,
            leaf_life: lives.leaf,
        })
    }

    /// Its certificate.
    pub fn anchor(&self) -> &Anchor {
        &self.anchor
    }

    /// Its certificate, PEM.
    pub fn certificate_pem(&self) -> String {
        bundle::pem("CERTIFICATE", &self.anchor.certificate)
    }

    /// Its key, PEM (PKCS #8). For the Secret only.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Signs a leaf for these names and addresses.
    ///
    /// # Errors
    /// Where a name cannot stand in a certificate, keys cannot be made, or the authority has ended.
    pub fn sign(&self, names: &[String], now: SystemTime) -> Result<Identity, TlsError> {
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name = name("gangplank");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - skew(self.leaf_life)).into();
        params.not_after = (now + self.leaf_life).min(self.anchor.not_after).into();
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.issuer)?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut identity = Identity::new(vec![leaf.der().clone()], der, now)?;
        identity.issuer = Some(self.anchor.clone());
        Ok(identity)
    }
}

/// By how much a certificate begins earlier than now: not by more than a small part of its life.
fn skew(life: Duration) -> Duration {
    SKEW.min(life / 10)
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_holds_now_and_is_replaced_before_it_ends() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let now = SystemTime::now();
        let authority = Authority::new(now, Lives::default()).unwrap();
        let leaf = authority
            .sign(&["localhost".into(), "127.0.0.1".into()], now)
            .unwrap();
        assert!(leaf.not_before < now && now < leaf.renew_at() && leaf.renew_at() < leaf.not_after);
        assert!(leaf.not_after < authority.anchor().not_after);
        assert!(authority.sign(&["ä.example".into()], now).is_err());
        let late = authority.anchor().not_after - Duration::from_secs(3600);
        let leaf = authority.sign(&["localhost".into()], late).unwrap();
        assert_eq!(leaf.not_after, authority.anchor().not_after);
        let over = authority.sign(&["localhost".into()], authority.anchor().not_after);
        assert!(matches!(over, Err(TlsError::Expired { .. })), "{over:?}");
    }

    #[test]
    fn it_reads_back_what_it_wrote_and_refuses_everything_else() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (now, lives) = (SystemTime::now(), Lives::default());
        let make = || Authority::new(now, lives).unwrap();
        let (one, two) = (make(), make());
        let from = |certificate: &str, key: &str| {
            Authority::from_pem(certificate.as_bytes(), key.as_bytes(), lives)
        };
        let (cert, key) = (one.certificate_pem(), one.key_pem());
        let again = from(&cert, &key).unwrap();
        assert_eq!(again.anchor(), one.anchor());
        let leaf = again.sign(&["localhost".into()], now).unwrap();
        let anchors = std::slice::from_ref(one.anchor());
        assert_eq!(
            bundle::verify(anchors, leaf.chain(), "localhost", now),
            Ok(())
        );

        let says = |certificate: &str, key: &str| from(certificate, key).unwrap_err().to_string();
        assert!(says(&cert, &two.key_pem()).contains("is not that of its certificate"));
        assert!(says("", &key).contains("there is none"));
        assert!(says(&(cert.clone() + &two.certificate_pem()), &key).contains("more than one"));
        assert!(says(&cert, "nothing").contains("private key"));
        let own = KeyPair::generate().unwrap();
        let plain = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let plain = plain.self_signed(&own).unwrap().pem();
        assert!(says(&plain, &own.serialize_pem()).contains("not that of an authority"));
    }
}
