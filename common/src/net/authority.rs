//! The certificate authority of one run: made on first start in the run's directory, in
//! a folder that only its owner may enter, and loaded later. It signs names;
//! [`super::enrolment`] decides who may have one.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};

use super::error::AuthorityError;
use super::identity::Identity;
use super::tls;
use super::tokens::Tokens;
use crate::files::replace_private;

/// Signs the certificates of one run. Its files are `ca.pem`, `ca.key`,
/// `tokens.json` and `revoked`, readable by their owner only.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    tokens: Tokens,
}

impl Authority {
    /// Loads the authority of `dir`, or makes it there. `ca.pem` is written last:
    /// without it the authority does not exist and is made anew.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        private_folder(dir).map_err(AuthorityError::file(dir))?;
        if !dir.join("ca.pem").exists() {
            Self::create(dir)?;
        }
        Self::load(dir)
    }

    fn create(dir: &Path) -> Result<(), AuthorityError> {
        let mut id = [0; 8];
        tls::random(&mut id).ok_or(AuthorityError::Random)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name = named(&format!("ringleader run {:016x}", u64::from_be_bytes(id)));
        let certificate = params.self_signed(&key)?;
        for (name, text) in [("ca.key", key.serialize_pem()), ("ca.pem", certificate.pem())] {
            let path = dir.join(name);
            replace_private(&path, text.as_bytes()).map_err(AuthorityError::file(&path))?;
        }
        Ok(())
    }

    fn load(dir: &Path) -> Result<Self, AuthorityError> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map(|text| (text, path.clone())).map_err(|source| AuthorityError::File { path, source })
        };
        let damaged = |path: &Path, problem: String| AuthorityError::Damaged { path: path.to_owned(), problem };
        let (pem, path) = read("ca.pem")?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| damaged(&path, e.to_string()))?;
        let (key_pem, key_path) = read("ca.key")?;
        let key = KeyPair::from_pem(&key_pem).map_err(|e| damaged(&key_path, e.to_string()))?;
        // The certificate contains its subject's public key verbatim.
        let public = key.subject_public_key_info();
        if !certificate.windows(public.len()).any(|part| part == public) {
            return Err(damaged(&key_path, "it is not the key of `ca.pem`".to_owned()));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|e| damaged(&path, e.to_string()))?;
        let tokens = Tokens::new(dir, tls::fingerprint(&certificate));
        Ok(Self { certificate, issuer, tokens })
    }

    /// The tokens with which new workers join.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A certificate of `name` for the key of a PKCS#10 request. Whatever else
    /// the request asks for is ignored.
    pub fn issue(&self, name: &str, request: &[u8]) -> Result<CertificateDer<'static>, AuthorityError> {
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
            .map_err(|e| AuthorityError::Request(e.to_string()))?;
        self.sign(name, &request.public_key)
    }

    /// A fresh key with a certificate of `name`, for a node in this process.
    pub fn identity(&self, name: &str) -> Result<Identity, AuthorityError> {
        let key = KeyPair::generate()?;
        let certificate = self.sign(name, &key)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Ok(Identity::new(name.to_owned(), certificate, self.certificate.clone(), key))
    }

    /// For a server of browsers on this machine, which is asked by these names and IP
    /// addresses: TLS 1.3 with a fresh key and a certificate that is good for nothing else.
    pub fn server_config(&self, names: &[String]) -> Result<Arc<rustls::ServerConfig>, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name = named("ringleader page");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // Some browsers accept no certificate that is good for longer than 825 days.
        let year = year_of(SystemTime::now());
        params.not_before = rcgen::date_time_ymd(year - 1, 12, 1);
        params.not_after = rcgen::date_time_ymd(year + 1, 12, 31);
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let chain = vec![certificate, self.certificate.clone()];
        let mut config = rustls::ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|e| AuthorityError::Server(e.to_string()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn sign(&self, name: &str, key: &impl PublicKeyData) -> Result<CertificateDer<'static>, AuthorityError> {
        let letters = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !letters || name.is_empty() || name.len() > 63 || name.starts_with('-') || name.ends_with('-') {
            return Err(AuthorityError::Name { name: name.to_owned() });
        }
        let mut params = CertificateParams::new([name.to_owned()])?;
        params.distinguished_name = named(name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }
}

/// The year of the Gregorian calendar, give or take a day.
fn year_of(now: SystemTime) -> i32 {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    1970 + i32::try_from(seconds / 31_556_952).unwrap_or_default()
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// Makes a folder that only its owner may enter, or closes an existing one to others: a
/// user who can open a file in it could lock that file.
fn private_folder(dir: &Path) -> io::Result<()> {
    match fs::metadata(dir) {
        Ok(found) if found.permissions().mode() & 0o077 == 0 => Ok(()),
        Ok(_) => fs::set_permissions(dir, Permissions::from_mode(0o700)),
        Err(_) => fs::DirBuilder::new().recursive(true).mode(0o700).create(dir),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_made_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("authority");
        let first = Authority::open(&path).unwrap();
        let again = Authority::open(&path).unwrap();
        let now = std::time::SystemTime::now();
        let token = |authority: &Authority| authority.tokens().standing(now).unwrap();
        assert_eq!(token(&first), token(&again));
        assert_ne!(token(&first), token(&Authority::open(&dir.path().join("other")).unwrap()));
        for name in ["ca.key", "tokens.json", "tokens.lock"] {
            assert_eq!(fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn nobody_else_may_enter_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/keys");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        Authority::open(&path).unwrap();
        assert_eq!(mode(), 0o700);
        // Permissions that an older version set.
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        Authority::open(&path).unwrap();
        assert_eq!(mode(), 0o700);
    }

    #[test]
    fn damaged_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["ca.pem", "ca.key"] {
            let path = dir.path().join(name.replace('.', "-"));
            Authority::open(&path).unwrap();
            fs::write(path.join(name), "nonsense").unwrap();
            let error = Authority::open(&path).err().unwrap().to_string();
            assert!(error.contains(name), "{error}");
        }
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        Authority::open(&one).unwrap();
        Authority::open(&two).unwrap();
        fs::copy(one.join("ca.key"), two.join("ca.key")).unwrap();
        assert!(Authority::open(&two).err().unwrap().to_string().contains("not the key of"));
    }

    #[test]
    fn a_server_of_browsers_is_certified_for_its_names_and_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        let names = ["trainer.example", "192.0.2.7", "2001:db8::7"].map(str::to_owned);
        assert!(authority.server_config(&names).is_ok());
        assert!(matches!(authority.server_config(&["häßlich".to_owned()]), Err(AuthorityError::Crypto(_))));
        let second = |n| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(n);
        assert_eq!((year_of(second(0)), year_of(second(1_790_000_000))), (1970, 2026));
    }

    #[test]
    fn only_plain_names_are_signed() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        assert_eq!(authority.identity("worker-7").unwrap().name, "worker-7");
        for name in ["", "Worker", "a.b", "*", "10.0.0.1", "-x", "x-", &"x".repeat(64)] {
            assert!(matches!(authority.identity(name), Err(AuthorityError::Name { .. })), "{name}");
        }
        assert!(matches!(authority.issue("worker-1", b"nonsense"), Err(AuthorityError::Request(_))));
    }
}
