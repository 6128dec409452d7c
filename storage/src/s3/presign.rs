//! Presigned URLs at the price of a signature.
//!
//! The SDK's own way to one leads through a whole operation: endpoint, identity, interceptors. A job wants some for each of its parts,
//! just when messages are awaited. So the SDK is asked once for each bucket how its URLs begin, and its signer does the rest. Only with
//! keys that do not change: of others the SDK knows when they expire.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::Credentials;
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SignatureLocation, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;

use super::failure::failure;
use crate::error::{Reason, StoreError};
use crate::hex::percent_encoded;
use crate::object::ObjectPath;

#[derive(Clone, Debug)]
pub struct Presigner {
    /// Never adds checksums: they would become signed headers that the URL's user does not know of.
    client: Client,
    keys: Option<Keys>,
    /// How the URLs of a bucket begin; `None` where only the SDK can sign them.
    stems: Arc<Mutex<BTreeMap<String, Option<String>>>>,
}

/// Fixed ones.
#[derive(Clone, Debug)]
pub struct Keys {
    pub credentials: Credentials,
    pub region: String,
}

impl Presigner {
    pub fn new(client: Client, keys: Option<Keys>) -> Self {
        Self { client, keys, stems: Arc::default() }
    }

    pub async fn get(&self, path: &ObjectPath, ttl: Duration) -> Result<String, StoreError> {
        let config = expiry(ttl, path)?;
        if let Some(url) = self.sign(path, "GET", "GetObject", &[], ttl).await {
            return Ok(url);
        }
        let request = self.client.get_object().bucket(path.bucket()).key(path.key());
        let signed = request.presigned(config).await.map_err(|error| failure(&error, "presign", path, false))?;
        Ok(signed.uri().to_owned())
    }

    pub async fn put(
        &self,
        path: &ObjectPath,
        ttl: Duration,
        content_type: Option<&str>,
    ) -> Result<String, StoreError> {
        let config = expiry(ttl, path)?;
        let headers = content_type.map(|kind| ("content-type", kind));
        let headers: Vec<_> = headers.into_iter().chain([("if-none-match", "*")]).collect();
        if let Some(url) = self.sign(path, "PUT", "PutObject", &headers, ttl).await {
            return Ok(url);
        }
        let request = self.client.put_object().bucket(path.bucket()).key(path.key()).if_none_match("*");
        let request = request.set_content_type(content_type.map(str::to_owned));
        let signed = request.presigned(config).await.map_err(|error| failure(&error, "presign", path, true))?;
        Ok(signed.uri().to_owned())
    }

    async fn sign(
        &self,
        path: &ObjectPath,
        method: &str,
        operation: &str,
        headers: &[(&str, &str)],
        ttl: Duration,
    ) -> Option<String> {
        let keys = self.keys.as_ref()?;
        let stem = self.stem(path.bucket(), keys).await?;
        let uri = format!("{stem}{}?x-id={operation}", percent_encoded(path.key()));
        signed(keys, method, uri, headers, ttl, SystemTime::now())
    }

    async fn stem(&self, bucket: &str, keys: &Keys) -> Option<String> {
        let known = || self.stems.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(stem) = known().get(bucket) {
            return stem.clone();
        }
        let config = PresigningConfig::expires_in(Duration::from_secs(1)).ok()?;
        let sample = self.client.get_object().bucket(bucket).key("k").presigned(config).await.ok()?;
        // Buckets of many regions, and of one zone, are signed in other ways.
        let usual = ["X-Amz-Algorithm=AWS4-HMAC-SHA256&", &format!("%2F{}%2Fs3%2Faws4_request&", keys.region)];
        let is_usual = usual.iter().all(|part| sample.uri().contains(part));
        let stem = sample.uri().split_once("/k?").map(|(stem, _)| format!("{stem}/")).filter(|_| is_usual);
        known().insert(bucket.to_owned(), stem.clone());
        stem
    }
}

/// By the query, as S3 wants it.
fn signed(
    keys: &Keys,
    method: &str,
    uri: String,
    headers: &[(&str, &str)],
    ttl: Duration,
    now: SystemTime,
) -> Option<String> {
    let mut settings = SigningSettings::default();
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(ttl);
    let identity = keys.credentials.clone().into();
    let params = v4::SigningParams::builder().identity(&identity).region(&keys.region).name("s3");
    let params = params.time(now).settings(settings).build().ok()?.into();
    let unsigned = SignableRequest::new(method, &uri, headers.iter().copied(), SignableBody::UnsignedPayload).ok()?;
    let (signing, _) = sign(unsigned, &params).ok()?.into_parts();
    // The signer's own way of applying them parses the URL twice more.
    let added =
        signing.params().iter().map(|(name, value)| format!("&{name}={}", percent_encoded(value).replace('/', "%2F")));
    Some(uri + &added.collect::<String>())
}

fn expiry(ttl: Duration, path: &ObjectPath) -> Result<PresigningConfig, StoreError> {
    PresigningConfig::expires_in(ttl).map_err(|error| StoreError::new(Reason::BadInput, "presign", path, error))
}

#[cfg(test)]
mod tests {
    use crate::s3::{S3Config, Secret, Store};

    use super::*;

    const TTL: Duration = Duration::from_secs(3600);

    /// What follows from the time of signing must be the same for both: tried again where a second passes in between.
    async fn same(ours: &Presigner, sdk: &Presigner, key: &str) {
        let path = ObjectPath::new("films", key).unwrap();
        for _ in 0..5 {
            let pairs = [
                (ours.get(&path, TTL).await.unwrap(), sdk.get(&path, TTL).await.unwrap()),
                (ours.put(&path, TTL, None).await.unwrap(), sdk.put(&path, TTL, None).await.unwrap()),
                (
                    ours.put(&path, TTL, Some("video/mp4")).await.unwrap(),
                    sdk.put(&path, TTL, Some("video/mp4")).await.unwrap(),
                ),
            ];
            if pairs.iter().all(|(ours, sdk)| ours == sdk) {
                return;
            }
        }
        assert_eq!(ours.get(&path, TTL).await.unwrap(), sdk.get(&path, TTL).await.unwrap(), "{key}");
        panic!("PUT of {key} differs");
    }

    #[tokio::test]
    async fn urls_are_those_of_the_sdk_to_the_letter() {
        for (endpoint, path_style) in [(Some("http://127.0.0.1:9000"), true), (None, false), (None, true)] {
            let config = S3Config {
                endpoint: endpoint.map(str::to_owned),
                region: "eu-west-3".to_owned(),
                access_key: Some("AKIAEXAMPLE".to_owned()),
                secret_key: Some(Secret::new("se/cret+".to_owned())),
                path_style,
                ..S3Config::default()
            };
            let ours = Store::connect(&config).await.unwrap().presigner;
            let sdk = Presigner { keys: None, ..ours.clone() };
            for key in ["a", "out/order-00001-1.json", "an é and a +=&?#%25 ~*'()//x", "k?"] {
                same(&ours, &sdk, key).await;
            }
            assert!(ours.stems.lock().unwrap().values().all(Option::is_some), "signed here, not by the SDK");
        }
    }
}
