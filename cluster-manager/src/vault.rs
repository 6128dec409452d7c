//! Seals the few secrets that must outlive a restart (a job's own S3 credentials) before they reach the journal.
//!
//! ChaCha20-Poly1305 (RFC 8439) under a key that stands in its own file, readable by this account only, so that a copied
//! journal alone tells nothing.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use storage::hex::{hex, unhex};

const KEY_LEN: usize = 32;

pub struct Vault {
    key: LessSafeKey,
    random: SystemRandom,
}

impl Vault {
    /// Opens the key file, making it on first use.
    pub fn open(path: &Path) -> Result<Self> {
        let random = SystemRandom::new();
        let mut key = [0; KEY_LEN];
        match std::fs::File::open(path) {
            Ok(mut file) => file.read_exact(&mut key).with_context(|| format!("read the key {}", path.display()))?,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                random.fill(&mut key).map_err(|_| anyhow!("the system gives no randomness"))?;
                std::fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(path)
                    .and_then(|mut file| file.write_all(&key).and_then(|()| file.sync_all()))
                    .with_context(|| format!("write the key {}", path.display()))?;
            }
            Err(error) => return Err(error).with_context(|| format!("open the key {}", path.display())),
        }
        let key = UnboundKey::new(&CHACHA20_POLY1305, &key).map_err(|_| anyhow!("the key has a wrong length"))?;
        Ok(Self { key: LessSafeKey::new(key), random })
    }

    /// Nonce, then ciphertext and tag, in hex.
    pub fn seal(&self, clear: &str) -> Result<String> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| anyhow!("the system gives no randomness"))?;
        let mut sealed = clear.as_bytes().to_vec();
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut sealed)
            .map_err(|_| anyhow!("seal a secret"))?;
        Ok(hex(&nonce) + &hex(&sealed))
    }

    pub fn open_sealed(&self, sealed: &str) -> Result<String> {
        let bytes = unhex(sealed).context("a sealed secret is hex")?;
        let (nonce, text) = bytes.split_at_checked(NONCE_LEN).context("a sealed secret bears a nonce")?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| anyhow!("a nonce has a wrong length"))?;
        let mut text = text.to_vec();
        let clear = self
            .key
            .open_in_place(nonce, Aad::empty(), &mut text)
            .map_err(|_| anyhow!("a sealed secret does not fit this key"))?;
        Ok(String::from_utf8(clear.to_vec())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_only_with_the_key_that_sealed_it() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::open(&dir.path().join("key")).unwrap();
        let sealed = vault.seal("AKIA:secret").unwrap();
        assert!(!sealed.contains("secret"));
        let again = Vault::open(&dir.path().join("key")).unwrap();
        assert_eq!(again.open_sealed(&sealed).unwrap(), "AKIA:secret");
        let other = Vault::open(&dir.path().join("other")).unwrap();
        assert!(other.open_sealed(&sealed).is_err());
        assert!(again.open_sealed("zz").is_err());
    }
}
