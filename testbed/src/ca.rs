//! A private certificate authority: who trusts it trusts the servers of one world and nobody else.

use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, both PEM.
pub struct Certificate {
    pub pem: String,
    pub key_pem: String,
}

impl Ca {
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key).context("sign the CA's own certificate")?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// One certificate for a domain's XMPP server and its rooms. It also serves as client: servers prove themselves to each other.
    pub fn issue(&self, domain: &str) -> Result<Certificate> {
        let mut params = CertificateParams::new(vec![domain.to_owned(), format!("conference.{domain}")])?;
        params.distinguished_name.push(DnType::CommonName, domain);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate =
            params.signed_by(&key, &self.issuer).with_context(|| format!("sign a certificate for {domain}"))?;
        Ok(Certificate { pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// Writes the CA's certificate, the file that `ca_file` of an agent names.
    pub fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, &self.pem).with_context(|| format!("write {}", path.display()))
    }
}
