//! S3's verbs on a [`Disk`]. Signatures, parsing and answers are the `s3s` crate's; what a verb means is here.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Seek, SeekFrom},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::StreamExt;
use s3s::{
    S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result,
    checksum::ChecksumHasher,
    crypto::{Checksum as _, Md5},
    dto::*,
    s3_error,
};
use storage::{hex::hex, object::ObjectPath};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::io::ReaderStream;
use uuid::Uuid;

use super::{
    disk::{About, Condition, Disk, Object, Refusal, Staged, Written},
    list::{Token, page},
};

/// Bytes per read of a GET: large, since a film is read in order.
const READ_BYTES: usize = 256 << 10;
/// S3's own least size of every part of a multipart upload but the last.
const PART_BYTES_MIN: u64 = 5 << 20;

#[derive(Debug)]
pub struct Backend {
    disk: Disk,
    uploads: Mutex<HashMap<String, Upload>>,
}

#[derive(Debug)]
struct Upload {
    bucket: String,
    key: String,
    about: About,
    parts: BTreeMap<i32, Arc<Part>>,
}

#[derive(Debug)]
struct Part {
    data: Staged,
    size: u64,
    md5: [u8; 16],
}

impl Backend {
    pub fn new(disk: Disk) -> Self {
        Self { disk, uploads: Mutex::default() }
    }

    fn uploads(&self) -> MutexGuard<'_, HashMap<String, Upload>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_bucket(&self, bucket: &str) -> S3Result<()> {
        self.disk.with_bucket(bucket, |_| ()).ok_or_else(|| s3_error!(NoSuchBucket))
    }

    fn find(&self, bucket: &str, key: &str) -> S3Result<Arc<Object>> {
        self.has_bucket(bucket)?;
        self.disk.find(bucket, key).ok_or_else(|| s3_error!(NoSuchKey))
    }

    /// Writes a body aside, with the checks its sender asked for.
    async fn receive(&self, body: Option<StreamingBlob>, said: Said) -> S3Result<Part> {
        let data = self.disk.stage();
        let mut file = tokio::fs::File::create(data.path()).await.map_err(broken)?;
        let (mut md5, mut sums, mut size) = (Md5::new(), said.hasher(), 0u64);
        if let Some(mut body) = body {
            while let Some(chunk) = body.next().await {
                let chunk = chunk.map_err(|error| S3Error::with_source(S3ErrorCode::IncompleteBody, error))?;
                md5.update(&chunk);
                sums.update(&chunk);
                size += chunk.len() as u64;
                file.write_all(&chunk).await.map_err(broken)?;
            }
        }
        file.flush().await.map_err(broken)?;
        if said.length.is_some_and(|length| u64::try_from(length).ok() != Some(size)) {
            return Err(s3_error!(IncompleteBody));
        }
        said.check(sums.finalize())?;
        Ok(Part { data, size, md5: md5.finalize() })
    }

    fn commit(
        &self,
        bucket: &str,
        key: &str,
        written: Written,
        about: About,
        condition: &Condition,
    ) -> S3Result<Arc<Object>> {
        ObjectPath::new(bucket, key).map_err(|error| s3_error!(InvalidArgument, "{}", error.detail))?;
        self.disk.commit(bucket, key, written, about, condition).map_err(refused)
    }
}

/// What a sender announced of a body.
struct Said {
    length: Option<i64>,
    sums: Checksum,
    trailers: Option<s3s::TrailingHeaders>,
    algorithm: Option<ChecksumAlgorithm>,
}

impl Said {
    fn hasher(&self) -> ChecksumHasher {
        let named = self.algorithm.as_ref().map(ChecksumAlgorithm::as_str).unwrap_or_default();
        let mut hasher = ChecksumHasher::default();
        if self.sums.checksum_crc32.is_some() || named == ChecksumAlgorithm::CRC32 {
            hasher.crc32 = Some(Default::default());
        }
        if self.sums.checksum_crc32c.is_some() || named == ChecksumAlgorithm::CRC32C {
            hasher.crc32c = Some(Default::default());
        }
        if self.sums.checksum_sha1.is_some() || named == ChecksumAlgorithm::SHA1 {
            hasher.sha1 = Some(Default::default());
        }
        if self.sums.checksum_sha256.is_some() || named == ChecksumAlgorithm::SHA256 {
            hasher.sha256 = Some(Default::default());
        }
        if self.sums.checksum_crc64nvme.is_some() || named == ChecksumAlgorithm::CRC64NVME {
            hasher.crc64nvme = Some(Default::default());
        }
        hasher
    }

    /// Compares every sum that was announced, in a header or behind the body.
    fn check(&self, found: Checksum) -> S3Result<()> {
        let trailers = self.trailers.as_ref().and_then(s3s::TrailingHeaders::take);
        let behind = |name: &str| trailers.as_ref()?.get(name)?.to_str().ok().map(str::to_owned);
        let pairs = [
            (&self.sums.checksum_crc32, "x-amz-checksum-crc32", found.checksum_crc32),
            (&self.sums.checksum_crc32c, "x-amz-checksum-crc32c", found.checksum_crc32c),
            (&self.sums.checksum_sha1, "x-amz-checksum-sha1", found.checksum_sha1),
            (&self.sums.checksum_sha256, "x-amz-checksum-sha256", found.checksum_sha256),
            (&self.sums.checksum_crc64nvme, "x-amz-checksum-crc64nvme", found.checksum_crc64nvme),
        ];
        for (ahead, name, found) in pairs {
            let said = ahead.clone().or_else(|| behind(name));
            if said.is_some() && said != found {
                return Err(s3_error!(BadDigest, "{name} does not match"));
            }
        }
        Ok(())
    }
}

/// Takes the announced sums out of a request for a body.
macro_rules! said {
    ($input:expr, $trailers:expr) => {
        Said {
            length: $input.content_length,
            sums: Checksum {
                checksum_crc32: $input.checksum_crc32.take(),
                checksum_crc32c: $input.checksum_crc32c.take(),
                checksum_sha1: $input.checksum_sha1.take(),
                checksum_sha256: $input.checksum_sha256.take(),
                checksum_crc64nvme: $input.checksum_crc64nvme.take(),
                ..Default::default()
            },
            trailers: $trailers,
            algorithm: $input.checksum_algorithm.take(),
        }
    };
}

fn broken(error: io::Error) -> S3Error {
    S3Error::internal_error(error)
}

fn refused(refusal: Refusal) -> S3Error {
    match refusal {
        Refusal::NoBucket => s3_error!(NoSuchBucket),
        Refusal::Precondition => s3_error!(PreconditionFailed),
        Refusal::Io(error) => broken(error),
    }
}

fn strong(object: &Object) -> ETag {
    ETag::Strong(object.etag.clone())
}

fn about(content_type: Option<String>, metadata: Option<Metadata>) -> About {
    About { content_type, metadata: metadata.into_iter().flatten().collect() }
}

fn metadata(object: &Object) -> Option<Metadata> {
    (!object.about.metadata.is_empty()).then(|| object.about.metadata.clone().into_iter().collect())
}

fn write_condition(if_match: Option<&IfMatch>, if_none_match: Option<&IfNoneMatch>) -> S3Result<Condition> {
    match (if_match, if_none_match) {
        (None, None) => Ok(Condition::None),
        (None, Some(ETagCondition::Any)) => Ok(Condition::Absent),
        (Some(ETagCondition::Any), None) => Ok(Condition::Present(None)),
        (Some(ETagCondition::ETag(etag)), None) => Ok(Condition::Present(Some(etag.value().to_owned()))),
        _ => Err(s3_error!(NotImplemented, "this precondition of a write")),
    }
}

/// RFC 9110 §13.2.2 for reads.
fn readable(object: &Object, if_match: Option<&IfMatch>, if_none_match: Option<&IfNoneMatch>) -> S3Result<()> {
    let is = |condition: &ETagCondition| condition.as_etag().is_none_or(|etag| etag.value() == object.etag);
    if if_match.is_some_and(|condition| !is(condition)) {
        return Err(s3_error!(PreconditionFailed));
    }
    if if_none_match.is_some_and(is) {
        return Err(s3_error!(NotModified));
    }
    Ok(())
}

#[async_trait::async_trait]
impl S3 for Backend {
    async fn list_buckets(&self, _: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        let named = |name| Bucket { name: Some(name), ..Default::default() };
        let buckets = self.disk.bucket_names().into_iter().map(named).collect();
        Ok(S3Response::new(ListBucketsOutput { buckets: Some(buckets), ..Default::default() }))
    }

    async fn create_bucket(&self, req: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        if !self.disk.create_bucket(&req.input.bucket).map_err(broken)? {
            return Err(s3_error!(BucketAlreadyOwnedByYou));
        }
        Ok(S3Response::new(CreateBucketOutput::default()))
    }

    async fn delete_bucket(&self, req: S3Request<DeleteBucketInput>) -> S3Result<S3Response<DeleteBucketOutput>> {
        self.has_bucket(&req.input.bucket)?;
        if !self.disk.delete_bucket(&req.input.bucket).map_err(broken)? {
            return Err(s3_error!(BucketNotEmpty));
        }
        Ok(S3Response::new(DeleteBucketOutput {}))
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.has_bucket(&req.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.has_bucket(&req.input.bucket)?;
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = req.input;
        let object = self.find(&input.bucket, &input.key)?;
        readable(&object, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        Ok(S3Response::new(HeadObjectOutput {
            accept_ranges: Some("bytes".into()),
            content_length: i64::try_from(object.size).ok(),
            content_type: object.about.content_type.clone(),
            e_tag: Some(strong(&object)),
            last_modified: Some(object.modified.into()),
            metadata: metadata(&object),
            ..Default::default()
        }))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        self.find(&input.bucket, &input.key)?;
        let (object, mut file) = self.disk.read(&input.bucket, &input.key).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => s3_error!(NoSuchKey),
            _ => broken(error),
        })?;
        readable(&object, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let (span, content_range) = match input.range {
            None => (0..object.size, None),
            Some(range) => {
                let span = range.check(object.size)?;
                let said = format!("bytes {}-{}/{}", span.start, span.end - 1, object.size);
                (span, Some(said))
            }
        };
        // Waits for nothing, unlike reading.
        file.seek(SeekFrom::Start(span.start)).map_err(broken)?;
        let mut file = tokio::fs::File::from_std(file);
        file.set_max_buf_size(READ_BYTES);
        let length = span.end - span.start;
        Ok(S3Response::new(GetObjectOutput {
            accept_ranges: Some("bytes".into()),
            body: Some(StreamingBlob::wrap(ReaderStream::with_capacity(file.take(length), READ_BYTES))),
            content_length: i64::try_from(length).ok(),
            content_range,
            content_type: object.about.content_type.clone(),
            e_tag: Some(strong(&object)),
            last_modified: Some(object.modified.into()),
            metadata: metadata(&object),
            ..Default::default()
        }))
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let mut input = req.input;
        self.has_bucket(&input.bucket)?;
        let condition = write_condition(input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let said = said!(input, req.trailing_headers);
        let part = self.receive(input.body, said).await?;
        let written = Written { etag: hex(&part.md5), data: part.data, size: part.size };
        let about = about(input.content_type, input.metadata);
        let object = self.commit(&input.bucket, &input.key, written, about, &condition)?;
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(strong(&object)), ..Default::default() }))
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        let input = req.input;
        let CopySource::Bucket { bucket, key, .. } = &input.copy_source else {
            return Err(s3_error!(NotImplemented));
        };
        let source = self.find(bucket, key)?;
        readable(&source, input.copy_source_if_match.as_ref(), input.copy_source_if_none_match.as_ref())?;
        let replace =
            input.metadata_directive.as_ref().is_some_and(|directive| directive.as_str() == MetadataDirective::REPLACE);
        let about = if replace { about(input.content_type, input.metadata) } else { source.about.clone() };
        let data = self.disk.link(bucket, &source).map_err(broken)?;
        let written = Written { data, size: source.size, etag: source.etag.clone() };
        let object = self.commit(&input.bucket, &input.key, written, about, &Condition::None)?;
        let result = CopyObjectResult {
            e_tag: Some(strong(&object)),
            last_modified: Some(object.modified.into()),
            ..Default::default()
        };
        Ok(S3Response::new(CopyObjectOutput { copy_object_result: Some(result), ..Default::default() }))
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.disk.delete(&req.input.bucket, &req.input.key).map_err(refused)?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let mut deleted = Vec::new();
        for object in req.input.delete.objects {
            self.disk.delete(&req.input.bucket, &object.key).map_err(refused)?;
            deleted.push(DeletedObject { key: Some(object.key), ..Default::default() });
        }
        Ok(S3Response::new(DeleteObjectsOutput { deleted: Some(deleted), ..Default::default() }))
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let max = input.max_keys.unwrap_or(1000).clamp(0, 1000);
        let after = match (&input.continuation_token, &input.start_after) {
            (Some(token), _) => {
                Some(Token::parse(token).ok_or_else(|| s3_error!(InvalidArgument, "not a continuation token"))?)
            }
            (None, start) => start.clone().map(Token::Key),
        };
        let prefix = input.prefix.clone().unwrap_or_default();
        let found = self
            .disk
            .with_bucket(&input.bucket, |all| {
                page(all, &prefix, input.delimiter.as_deref(), after.as_ref(), max as usize)
            })
            .ok_or_else(|| s3_error!(NoSuchBucket))?;
        let line = |object: Arc<Object>| s3s::dto::Object {
            e_tag: Some(strong(&object)),
            key: Some(object.key.clone()),
            last_modified: Some(object.modified.into()),
            size: i64::try_from(object.size).ok(),
            ..Default::default()
        };
        // Keys are never URL-encoded, and the answer does not say so: clients decode by what it says.
        Ok(S3Response::new(ListObjectsV2Output {
            key_count: i32::try_from(found.objects.len() + found.prefixes.len()).ok(),
            contents: Some(found.objects.into_iter().map(line).collect()),
            common_prefixes: Some(
                found.prefixes.into_iter().map(|prefix| CommonPrefix { prefix: Some(prefix) }).collect(),
            ),
            is_truncated: Some(found.next.is_some()),
            next_continuation_token: found.next.map(|token| token.print()),
            continuation_token: input.continuation_token,
            delimiter: input.delimiter,
            max_keys: Some(max),
            name: Some(input.bucket),
            prefix: input.prefix,
            start_after: input.start_after,
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let CreateMultipartUploadInput { bucket, key, content_type, metadata, .. } = req.input;
        self.has_bucket(&bucket)?;
        let id = Uuid::new_v4().simple().to_string();
        let upload = Upload {
            bucket: bucket.clone(),
            key: key.clone(),
            about: about(content_type, metadata),
            parts: BTreeMap::new(),
        };
        self.uploads().insert(id.clone(), upload);
        let output = CreateMultipartUploadOutput {
            bucket: Some(bucket),
            key: Some(key),
            upload_id: Some(id),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let mut input = req.input;
        let said = said!(input, req.trailing_headers);
        let part = Arc::new(self.receive(input.body, said).await?);
        let mut uploads = self.uploads();
        let upload =
            uploads.get_mut(&input.upload_id).filter(|upload| upload.bucket == input.bucket && upload.key == input.key);
        let upload = upload.ok_or_else(|| s3_error!(NoSuchUpload))?;
        let etag = ETag::Strong(hex(&part.md5));
        upload.parts.insert(input.part_number, part);
        Ok(S3Response::new(UploadPartOutput { e_tag: Some(etag), ..Default::default() }))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.uploads().remove(&req.input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = req.input;
        let condition = write_condition(input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let named = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let (about, parts) = {
            let uploads = self.uploads();
            let upload =
                uploads.get(&input.upload_id).filter(|upload| upload.bucket == input.bucket && upload.key == input.key);
            let upload = upload.ok_or_else(|| s3_error!(NoSuchUpload))?;
            (upload.about.clone(), chosen(upload, &named)?)
        };
        let (data, mut size, mut sums) = (self.disk.stage(), 0, Md5::new());
        let mut whole = tokio::fs::File::create(data.path()).await.map_err(broken)?;
        for part in &parts {
            let mut file = tokio::fs::File::open(part.data.path()).await.map_err(broken)?;
            size += tokio::io::copy(&mut file, &mut whole).await.map_err(broken)?;
            sums.update(&part.md5);
        }
        whole.flush().await.map_err(broken)?;
        let written = Written { data, size, etag: format!("{}-{}", hex(&sums.finalize()), parts.len()) };
        let object = self.commit(&input.bucket, &input.key, written, about, &condition)?;
        self.uploads().remove(&input.upload_id);
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(strong(&object)),
            ..Default::default()
        }))
    }
}

/// The parts that the client names, which must ascend, be here, and be large enough.
fn chosen(upload: &Upload, named: &[CompletedPart]) -> S3Result<Vec<Arc<Part>>> {
    let mut parts: Vec<Arc<Part>> = Vec::new();
    let mut before = 0;
    for part in named {
        let number = part.part_number.filter(|number| *number > before).ok_or_else(|| s3_error!(InvalidPartOrder))?;
        let found = upload.parts.get(&number).ok_or_else(|| s3_error!(InvalidPart))?;
        if part.e_tag.as_ref().is_some_and(|etag| etag.value() != hex(&found.md5)) {
            return Err(s3_error!(InvalidPart));
        }
        if parts.last().is_some_and(|part| part.size < PART_BYTES_MIN) {
            return Err(s3_error!(EntityTooSmall));
        }
        before = number;
        parts.push(found.clone());
    }
    if parts.is_empty() { Err(s3_error!(InvalidPart)) } else { Ok(parts) }
}
