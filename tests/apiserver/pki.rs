//! Keys and certificates of one throwaway cluster.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// Where the PEM files lie.
#[derive(Debug)]
pub(crate) struct Pki {
    /// The authority that signed both certificates.
    pub(crate) ca: PathBuf,
    /// The API server's serving certificate.
    pub(crate) server_cert: PathBuf,
    /// Its key.
    pub(crate) server_key: PathBuf,
    /// The administrator's client certificate, of the group `system:masters`.
    pub(crate) admin_cert: PathBuf,
    /// Its key.
    pub(crate) admin_key: PathBuf,
    /// Signs service account tokens.
    pub(crate) service_account_key: PathBuf,
    /// Verifies them.
    pub(crate) service_account_public: PathBuf,
}

impl Pki {
    /// Makes everything anew and writes it to `dir`.
    pub(crate) fn create(dir: &Path) -> Result<Self> {
        let write = |name: &str, pem: &str| {
            let path = dir.join(name);
            std::fs::write(&path, pem)
                .with_context(|| format!("cannot write {}", path.display()))?;
            anyhow::Ok(path)
        };

        let mut ca = CertificateParams::default();
        ca.distinguished_name
            .push(DnType::CommonName, "gangplank test cluster");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca_key = KeyPair::generate()?;
        let ca_pem = ca.self_signed(&ca_key)?.pem();
        let issuer = Issuer::new(ca, ca_key);

        let mut server = CertificateParams::new(vec!["localhost".to_owned()])?;
        server
            .distinguished_name
            .push(DnType::CommonName, "kube-apiserver");
        server
            .subject_alt_names
            .push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let server_key = KeyPair::generate()?;
        let server_pem = server.signed_by(&server_key, &issuer)?.pem();

        let mut admin = CertificateParams::default();
        admin.distinguished_name.push(DnType::CommonName, "admin");
        admin
            .distinguished_name
            .push(DnType::OrganizationName, "system:masters");
        admin.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let admin_key = KeyPair::generate()?;
        let admin_pem = admin.signed_by(&admin_key, &issuer)?.pem();

        let service_account = KeyPair::generate()?;

        Ok(Self {
            ca: write("ca.crt", &ca_pem)?,
            server_cert: write("apiserver.crt", &server_pem)?,
            server_key: write("apiserver.key", &server_key.serialize_pem())?,
            admin_cert: write("admin.crt", &admin_pem)?,
            admin_key: write("admin.key", &admin_key.serialize_pem())?,
            service_account_key: write("service-account.key", &service_account.serialize_pem())?,
            service_account_public: write(
                "service-account.pub",
                &service_account.public_key_pem(),
            )?,
        })
    }
}
