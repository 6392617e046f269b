//! One blob into a registry, with as little traffic as the registry allows.
//!
//! ```text
//! HEAD ── there ──► done
//!  └─ POST ?mount=…&from=… ── 201 ──► done, copied inside the registry
//!      └─ 202, Location ──► PUT ?digest=…        the whole blob at once
//!          └─ refused: POST ──► PATCH … PATCH ──► PUT ?digest=…     in pieces
//! ```
//!
//! An upload that broke is begun anew: a session of which a part may have arrived is worth less
//! than the few requests it saves. Where a session is on another host (a storage behind the
//! registry), the credentials do not go there.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{HeaderName, Method, StatusCode};
use tracing::debug;
use url::Url;

use super::remote::{Call, Remote};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::source::Deadline;
use crate::source::http::{Response, target};
use crate::source::oci::reference::Repository;

/// Size of a piece where a whole blob is refused: below the 1 MiB that nginx takes unless told
/// otherwise, which is what usually refuses.
const CHUNK: usize = 512 << 10;
/// Largest piece that a registry can ask for.
const MOST_CHUNK: usize = 64 << 20;
/// How often an upload is begun in all.
const ATTEMPTS: u32 = 3;
/// The time that each MiB adds to the budget of a blob.
const PER_MIB: Duration = Duration::from_secs(64);

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");
const CHUNK_MIN: HeaderName = HeaderName::from_static("oci-chunk-min-length");

/// How a blob got to where it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It was there.
    Found,
    /// The registry took it from another of its repositories.
    Mounted,
    /// It was uploaded.
    Uploaded,
}

/// How an upload in a session ended.
enum Session {
    Done,
    /// The registry does not want it like this.
    Refused(Response),
}

impl Remote {
    /// Makes sure that `repository` has the blob, which hashes to `digest`.
    ///
    /// # Errors
    ///
    /// Those of a request; [`Error::Rejected`] when the registry takes the blob neither whole nor
    /// in pieces.
    pub async fn ensure_blob(
        &self,
        repository: &Repository,
        digest: Digest,
        bytes: &Bytes,
        mount_from: Option<&Repository>,
    ) -> Result<Sent> {
        let mib = u32::try_from(bytes.len() >> 20).unwrap_or(u32::MAX);
        let deadline = Deadline::after(self.timeout() + PER_MIB * mib);
        let what = format!("blob {digest} of {repository}");
        if self.has_blob(repository, digest, &what, deadline).await? {
            return Ok(Sent::Found);
        }
        let mut attempt = 1;
        let mut mount_from = mount_from.filter(|from| *from != repository);
        let upload = Upload {
            remote: self,
            repository,
            digest,
            bytes,
            what: &what,
            deadline,
        };
        loop {
            match upload.run(mount_from).await {
                Ok(sent) => return Ok(sent),
                Err(error @ Error::Unreachable { .. }) if attempt < ATTEMPTS => {
                    debug!(%digest, attempt, %error, "beginning the upload anew");
                    attempt += 1;
                    mount_from = None;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether `repository` has the blob.
    ///
    /// # Errors
    ///
    /// Those of a request.
    async fn has_blob(
        &self,
        repository: &Repository,
        digest: Digest,
        what: &str,
        deadline: Deadline,
    ) -> Result<bool> {
        let call = Call::new(
            Method::HEAD,
            self.url(repository, &format!("blobs/{digest}")),
        );
        let answer = self.call(repository, call, what, deadline).await?;
        match answer.status {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(answer.error(what)),
        }
    }
}

/// What all requests for one blob have in common.
struct Upload<'a> {
    remote: &'a Remote,
    repository: &'a Repository,
    digest: Digest,
    bytes: &'a Bytes,
    what: &'a str,
    deadline: Deadline,
}

impl Upload<'_> {
    async fn run(&self, mount_from: Option<&Repository>) -> Result<Sent> {
        let (mut url, begun) = self.begin(mount_from).await?;
        if begun.status == StatusCode::CREATED {
            return Ok(Sent::Mounted);
        }
        url.query_pairs_mut()
            .append_pair("digest", &self.digest.to_string());
        let refused = match self.put(url, self.bytes.clone()).await? {
            Session::Done => return Ok(Sent::Uploaded),
            Session::Refused(answer) => answer,
        };
        debug!(digest = %self.digest, status = refused.status.as_u16(), "sending the blob in pieces");
        match self.in_pieces().await {
            Ok(Session::Done) => Ok(Sent::Uploaded),
            // What was said about the simpler request says more.
            Ok(Session::Refused(_)) | Err(Error::Rejected { .. }) => Err(refused.error(self.what)),
            Err(error) => Err(error),
        }
    }

    /// Opens a session, or has the blob mounted.
    async fn begin(&self, mount_from: Option<&Repository>) -> Result<(Url, Response)> {
        let mut asked = self.remote.url(self.repository, "blobs/uploads/");
        if let Some(from) = mount_from {
            asked
                .query_pairs_mut()
                .append_pair("mount", &self.digest.to_string())
                .append_pair("from", from.as_str());
        }
        let mut call = Call::new(Method::POST, asked.clone());
        call.body = Some(Bytes::new());
        call.also = mount_from;
        let answer = self.call(call).await?;
        match answer.status {
            StatusCode::CREATED => Ok((asked, answer)),
            StatusCode::ACCEPTED => {
                let url = target(self.remote.http(), &asked, &answer, self.what)?;
                Ok((url, answer))
            }
            _ => Err(answer.error(self.what)),
        }
    }

    /// Ends a session with `body`.
    async fn put(&self, url: Url, body: Bytes) -> Result<Session> {
        let mut call = Call::new(Method::PUT, url);
        call.headers.insert(CONTENT_TYPE, OCTETS);
        call.headers
            .insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        call.body = Some(body);
        // After a failure the session may be gone, or complete.
        call.repeatable = false;
        let answer = self.call(call).await?;
        match answer.status.as_u16() {
            200..=299 => Ok(Session::Done),
            400 | 404 | 405 | 411 | 413 | 415 | 416 | 501 => Ok(Session::Refused(answer)),
            _ => Err(answer.error(self.what)),
        }
    }

    async fn in_pieces(&self) -> Result<Session> {
        let (mut url, begun) = self.begin(None).await?;
        let smallest = begun
            .headers
            .get(CHUNK_MIN)
            .and_then(|value| value.to_str().ok()?.parse::<usize>().ok())
            .unwrap_or(0);
        let size = CHUNK.max(smallest).min(MOST_CHUNK);
        let mut start = 0;
        while start < self.bytes.len() {
            let end = self.bytes.len().min(start + size);
            let mut call = Call::new(Method::PATCH, url.clone());
            call.headers = self.piece(start, end)?;
            call.body = Some(self.bytes.slice(start..end));
            call.repeatable = false;
            let answer = self.call(call).await?;
            match answer.status.as_u16() {
                200..=299 => url = target(self.remote.http(), &url, &answer, self.what)?,
                400..=499 if !matches!(answer.status.as_u16(), 401 | 403 | 429) => {
                    return Ok(Session::Refused(answer));
                }
                _ => return Err(answer.error(self.what)),
            }
            start = end;
        }
        url.query_pairs_mut()
            .append_pair("digest", &self.digest.to_string());
        self.put(url, Bytes::new()).await
    }

    fn piece(&self, start: usize, end: usize) -> Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, OCTETS);
        headers.insert(CONTENT_LENGTH, HeaderValue::from(end - start));
        let range = HeaderValue::from_str(&format!("{start}-{}", end - 1))
            .map_err(|error| Error::Internal(error.to_string()))?;
        headers.insert(CONTENT_RANGE, range);
        Ok(headers)
    }

    async fn call(&self, call: Call<'_>) -> Result<Response> {
        self.remote
            .call(self.repository, call, self.what, self.deadline)
            .await
    }
}
