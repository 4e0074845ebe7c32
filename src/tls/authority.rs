//! A certificate authority in memory, and the leaves it signs.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{Identity, TlsError};

/// As long as the process may run; it dies with it.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);

/// How long a leaf holds; it is replaced after two thirds.
const LEAF_LIFE: Duration = Duration::from_secs(7 * 86_400);

/// Clocks of an API server and ours may differ by this much.
const SKEW: Duration = Duration::from_secs(5 * 60);

/// A certificate authority whose key never leaves the process.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// Makes one.
    ///
    /// # Errors
    /// Where keys cannot be made.
    pub fn new(now: SystemTime) -> Result<Self, TlsError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name("gangplank CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - SKEW).into();
        params.not_after = (now + AUTHORITY_LIFE).into();
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            pem,
        })
    }

    /// What a client has to trust, PEM.
    pub fn bundle(&self) -> &str {
        &self.pem
    }

    /// Signs a leaf for these names and addresses.
    ///
    /// # Errors
    /// Where a name cannot stand in a certificate, or keys cannot be made.
    pub fn sign(&self, names: &[String], now: SystemTime) -> Result<Identity, TlsError> {
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name = name("gangplank");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - SKEW).into();
        params.not_after = (now + LEAF_LIFE).into();
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.issuer)?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Identity::new(vec![leaf.der().clone()], der, now)
    }
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
        let authority = Authority::new(now).unwrap();
        let leaf = authority
            .sign(&["localhost".into(), "127.0.0.1".into()], now)
            .unwrap();
        assert!(leaf.not_before < now && now < leaf.renew_at() && leaf.renew_at() < leaf.not_after);
        assert!(
            authority
                .bundle()
                .starts_with("-----BEGIN CERTIFICATE-----")
        );
        assert!(authority.sign(&["ä.example".into()], now).is_err());
    }
}
