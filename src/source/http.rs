//! HTTP as a hostile network deserves it: this file and its folder alone know the HTTP client.
//!
//! - **Bounded in time.** Queueing, connecting, waiting, retrying and reading share the caller's
//!   [`Deadline`]; within it each attempt has the limits of [`Timing`]. Names never queue behind
//!   content: each has its own [`Lane`].
//! - **Bounded in size.** A body is counted while it streams and after decompression; more than the
//!   request allows ends it.
//! - **Discreet.** Credentials go to the origin (scheme, host, port) that was asked and nowhere
//!   else, in particular not along with a redirect; they are in no log line and no error, not even
//!   when a server echoes them. Plain HTTP is for loopback, which is never asked through a proxy.
//! - **Persistent.** What may help a second time is tried a second time, as [`Timing`] says.
//!
//! An answer is an answer, whatever its status: [`HttpClient::get`] fails only if there is none.
//! [`Response::error`] is the one table from statuses to errors.

mod names;
pub mod problem;
mod retry;
mod upload;
mod wire;

pub use retry::Timing;
pub use upload::{Exchange, target};

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use http::{HeaderName, StatusCode};
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};
use tracing::debug;
use url::Url;
use uuid::Uuid;

use super::{Deadline, Sink};
use crate::config::value::is_here;
use crate::error::{Error, Result};
use crate::metrics::{Counter, Metrics};

/// Most bytes of an answer, after decompression.
pub const MAX_ANSWER: u64 = 64 << 20;
/// Most bytes that are read of the body of a refusal; the rest says nothing new.
pub const MAX_ERROR_BODY: u64 = 64 << 10;
/// Most requests of one source that are on the wire at the same time, for each [`Lane`]. The others
/// wait, within their deadlines.
pub const MAX_IN_FLIGHT: usize = 64;
/// Most redirects that one request follows, so that loops end.
pub const MAX_REDIRECTS: usize = 5;
/// How long the body of a refusal is waited for; its status is known already.
const ERROR_BODY_TIME: Duration = Duration::from_secs(2);

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What all requests of a process have in common.
#[derive(Debug, Clone, Default)]
pub struct HttpSettings {
    /// PEM certificates that are trusted in addition to the system's.
    pub ca_file: Option<PathBuf>,
    /// Allows plain HTTP to hosts other than loopback.
    pub insecure_http: bool,
    /// Where requests are counted.
    pub metrics: Arc<Metrics>,
}

/// Credentials for the origin that a request names. Never printed.
#[derive(Clone)]
pub struct Authorization {
    header: HeaderValue,
    /// What must not be repeated: the credentials in each way in which they can be told.
    secrets: Vec<String>,
}

impl Authorization {
    /// `Bearer` credentials.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if the token has characters that no header may carry.
    pub fn bearer(token: &str) -> Result<Self> {
        let header = HeaderValue::from_str(&format!("Bearer {token}"));
        Self::new(header, [token])
    }

    /// `Basic` credentials.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a user name with a colon.
    pub fn basic(user: &str, password: &str) -> Result<Self> {
        if user.contains(':') {
            return Err(Error::Config(
                "a user name must not contain a colon".to_owned(),
            ));
        }
        let pair = STANDARD.encode(format!("{user}:{password}"));
        let header = HeaderValue::from_str(&format!("Basic {pair}"));
        Self::new(header, [pair.as_str(), password])
    }

    fn new<const N: usize>(
        header: Result<HeaderValue, http::header::InvalidHeaderValue>,
        secrets: [&str; N],
    ) -> Result<Self> {
        // The cause would print nothing of use, and maybe the key.
        let mut header = header.map_err(|_| {
            Error::Config("the API key contains characters that cannot be sent".into())
        })?;
        header.set_sensitive(true);
        Ok(Self {
            header,
            secrets: secrets.map(str::to_owned).into(),
        })
    }

    /// Removes the credentials from what a server wrote.
    fn scrub(&self, text: String) -> String {
        self.secrets.iter().fold(text, without)
    }
}

/// Removes a secret from what a server wrote.
fn without(text: String, secret: impl AsRef<str>) -> String {
    match secret.as_ref() {
        "" => text,
        secret if text.contains(secret) => text.replace(secret, "…"),
        _ => text,
    }
}

impl std::fmt::Debug for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authorization(…)")
    }
}

/// What a request is for. A host that serves content from elsewhere may be stuck with that and quick
/// with everything else, so each has places on the wire of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Names, lists and tokens: small, and somebody waits for a path.
    Names,
    /// Files' content, also what is read ahead.
    Content,
    /// Archives, which a list of files may need; they may go on when nobody waits any more.
    Archives,
}

/// The places of one source, by lane.
struct Lanes {
    names: Semaphore,
    content: Semaphore,
    archives: Semaphore,
}

impl Lanes {
    fn new() -> Arc<Self> {
        let places = || Semaphore::new(MAX_IN_FLIGHT);
        Arc::new(Self {
            names: places(),
            content: places(),
            archives: places(),
        })
    }

    fn of(&self, lane: Lane) -> &Semaphore {
        match lane {
            Lane::Names => &self.names,
            Lane::Content => &self.content,
            Lane::Archives => &self.archives,
        }
    }
}

/// One request's time, and how much of it went by in our own queue.
struct Clock<'a> {
    what: &'a str,
    deadline: Deadline,
    start: Instant,
    queued: Duration,
}

impl<'a> Clock<'a> {
    fn start(what: &'a str, deadline: Deadline) -> Self {
        Self {
            what,
            deadline,
            start: Instant::now(),
            queued: Duration::ZERO,
        }
    }

    /// Waits for a place.
    async fn queue<'l>(&mut self, places: &'l Semaphore) -> Result<SemaphorePermit<'l>> {
        let start = Instant::now();
        let permit = timeout_at(self.deadline.0, places.acquire()).await;
        self.queued += start.elapsed();
        match permit {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(Error::Internal("the queue for a source was closed".into())),
            Err(_) => Err(self.timed_out()),
        }
    }

    fn timed_out(&self) -> Error {
        Error::Timeout {
            what: self.what.to_owned(),
            queued: self.queued > self.start.elapsed() / 2,
        }
    }
}

/// One GET.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// What it is for.
    pub lane: Lane,
    /// Where to.
    pub url: Url,
    /// What is asked for, in the user's words, for errors.
    pub what: &'a str,
    /// The media types that are understood.
    pub accept: &'static str,
    /// Credentials for the origin of `url`.
    pub authorization: Option<&'a Authorization>,
    /// Most bytes of a successful answer's body, after decompression.
    pub limit: u64,
}

/// An answer, of any status.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body; of a refusal, at most its first [`MAX_ERROR_BODY`] bytes.
    pub body: Bytes,
    /// Who answered: the origin after redirects.
    pub origin: String,
    /// What a refusal said, in one printable line without secrets.
    reason: String,
}

impl Response {
    /// Reads the body as JSON.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] about `what`.
    pub fn json<T: DeserializeOwned>(&self, what: &str) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|error| self.malformed(what, error))
    }

    /// The error for an answer that cannot be understood because of `reason`.
    pub fn malformed(&self, what: &str, reason: impl ToString) -> Error {
        Error::Malformed {
            what: what.to_owned(),
            origin: self.origin.clone(),
            reason: problem::printable(&reason.to_string()),
        }
    }

    /// What a refusal said, in one printable line without secrets.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// What the answer means for whoever asked for `what`, if it is not a success.
    pub fn error(&self, what: &str) -> Error {
        let (what, origin) = (what.to_owned(), self.origin.clone());
        let reason = self.reason.clone();
        match self.status.as_u16() {
            404 | 410 => Error::NotFound { what },
            401 | 403 => Error::Denied { what, reason },
            408 | 429 | 500..=599 => Error::Unreachable { origin, reason },
            400..=499 => Error::Rejected {
                what,
                origin,
                reason,
            },
            _ => Error::Malformed {
                what,
                origin,
                reason,
            },
        }
    }
}

/// Collects a body in memory.
#[derive(Default)]
struct Collect(Vec<u8>);

impl Sink for Collect {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn restart(&mut self) {
        self.0.clear();
    }
}

/// How one attempt ended, if it decides nothing.
enum Attempt {
    /// With an answer.
    Answered(Box<Response>),
    /// Without one, but the next attempt may have more luck.
    Failed { origin: String, reason: String },
}

/// Sends requests. Cheap to clone; clones share connections and the bound on requests in flight.
#[derive(Clone)]
pub struct HttpClient {
    wires: Arc<wire::Wires>,
    lanes: Arc<Lanes>,
    metrics: Arc<Metrics>,
    timing: Timing,
}

impl std::fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpClient")
            .field("timing", &self.timing)
            .finish_non_exhaustive()
    }
}

impl HttpClient {
    /// Checks the settings. Nothing is connected, and the system's certificates are loaded only by
    /// the first request, because a mount must be up before that matters.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] or [`Error::Config`] if the CA file cannot be read or has no certificates.
    pub fn new(settings: &HttpSettings) -> Result<Self> {
        Self::with_timing(settings, Timing::default())
    }

    /// As [`HttpClient::new`], more or less patient.
    ///
    /// # Errors
    ///
    /// Those of [`HttpClient::new`].
    pub fn with_timing(settings: &HttpSettings, timing: Timing) -> Result<Self> {
        Ok(Self {
            wires: Arc::new(wire::Wires::new(settings, timing.connect)?),
            lanes: Lanes::new(),
            metrics: Arc::clone(&settings.metrics),
            timing,
        })
    }

    /// The same client with a bound on requests in flight of its own: a stuck source must not use
    /// up the places of another.
    pub fn for_source(&self) -> Self {
        Self {
            lanes: Lanes::new(),
            ..self.clone()
        }
    }

    /// The same client for a source behind which another waits: one attempt and little time to
    /// answer, since the next source is the better second attempt.
    pub fn impatient(&self) -> Self {
        const PATIENCE: Duration = Duration::from_secs(5);
        Self {
            timing: Timing {
                attempts: 1,
                first_byte: self.timing.first_byte.min(PATIENCE),
                stall_window: self.timing.stall_window.min(PATIENCE),
                ..self.timing
            },
            ..self.for_source()
        }
    }

    /// Whether `url` may be asked at all.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for plain HTTP to a host other than loopback (unless allowed), and for
    /// anything that is not HTTP.
    pub fn check(&self, url: &Url) -> Result<()> {
        self.wires.check(url)
    }

    /// Asks and collects the body.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when the deadline has passed, [`Error::Unreachable`] if no attempt
    /// brought an answer, [`Error::Malformed`] for a body over the limit or a redirect that must
    /// not be followed, [`Error::Config`] if the URL must not be asked.
    pub async fn get(&self, request: &Request<'_>, deadline: Deadline) -> Result<Response> {
        let mut body = Collect::default();
        let mut response = self.download(request, &mut body, deadline).await?;
        if response.status.is_success() {
            response.body = body.0.into();
        }
        Ok(response)
    }

    /// Asks and writes the body of a success into `sink` as it arrives; the response then has none.
    ///
    /// # Errors
    ///
    /// Those of [`HttpClient::get`], and those of `sink`, which end the download.
    pub async fn download(
        &self,
        request: &Request<'_>,
        sink: &mut dyn Sink,
        deadline: Deadline,
    ) -> Result<Response> {
        self.check(&request.url)?;
        let mut clock = Clock::start(request.what, deadline);
        let mut attempt = 1;
        loop {
            if deadline.is_over() {
                return Err(clock.timed_out());
            }
            sink.restart();
            let outcome = {
                let _place = clock.queue(self.lanes.of(request.lane)).await?;
                self.attempt(request, sink, attempt, deadline).await?
            };
            let (retry_after, last_reason) = match &outcome {
                Attempt::Answered(response) if !retry::may_help(response.status) => (None, None),
                Attempt::Answered(response) => (
                    response.headers.get(RETRY_AFTER).and_then(retry::after),
                    Some(&response.reason),
                ),
                Attempt::Failed { reason, .. } => (None, Some(reason)),
            };
            if deadline.is_over() && !matches!(outcome, Attempt::Answered(_)) {
                return Err(clock.timed_out());
            }
            let note = match last_reason {
                None => None,
                Some(_) if attempt >= self.timing.attempts => {
                    Some(format!("after {attempt} attempts"))
                }
                Some(reason) => {
                    let pause = self
                        .timing
                        .pause(attempt)
                        .max(retry_after.unwrap_or_default());
                    if pause < deadline.remaining() {
                        debug!(what = request.what, attempt, %reason, ?pause, "will try again");
                        tokio::time::sleep(pause).await;
                        attempt += 1;
                        continue;
                    }
                    Some(match retry_after {
                        Some(wait) => format!(
                            "it asks to wait {} s, longer than this request may take",
                            wait.as_secs()
                        ),
                        None => format!("after {attempt} attempts, with no time for another"),
                    })
                }
            };
            return match outcome {
                Attempt::Answered(mut response) => {
                    if let Some(note) = note {
                        response.reason = format!("{} ({note})", response.reason);
                    }
                    Ok(*response)
                }
                Attempt::Failed { origin, reason } => Err(Error::Unreachable {
                    origin,
                    reason: format!("{reason} ({})", note.unwrap_or_default()),
                }),
            };
        }
    }

    /// One attempt, redirects included.
    async fn attempt(
        &self,
        request: &Request<'_>,
        sink: &mut dyn Sink,
        attempt: u32,
        deadline: Deadline,
    ) -> Result<Attempt> {
        let first_byte = deadline.0.min(Instant::now() + self.timing.first_byte);
        let asked = request.url.origin();
        let mut url = request.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let origin = url.origin().ascii_serialization();
            let id = Uuid::new_v4().to_string();
            let mut headers = HeaderMap::with_capacity(3);
            headers.insert(ACCEPT, HeaderValue::from_static(request.accept));
            if let Ok(id) = HeaderValue::from_str(&id) {
                headers.insert(X_REQUEST_ID, id);
            }
            // Compared anew at every hop: a redirect back home may have the key again.
            if let Some(authorization) = request.authorization
                && url.origin() == asked
            {
                headers.insert(AUTHORIZATION, authorization.header.clone());
            }
            self.metrics.count(Counter::SourceRequests);
            let sent = timeout_at(first_byte, self.wires.send(&url, headers)?).await;
            let status = match &sent {
                Ok(Ok(answer)) => answer.status().as_u16(),
                Ok(Err(_)) | Err(_) => 0,
            };
            debug!(method = "GET", path = url.path(), status, attempt, request_id = %id, "asked");
            let answer = match sent {
                Ok(Ok(answer)) => answer,
                Ok(Err(failure)) if failure.is_final => {
                    return Err(Error::Unreachable {
                        origin,
                        reason: failure.reason,
                    });
                }
                Ok(Err(failure)) => {
                    return Ok(Attempt::Failed {
                        origin,
                        reason: failure.reason,
                    });
                }
                Err(_) => {
                    return Ok(Attempt::Failed {
                        origin,
                        reason: "no answer in time".into(),
                    });
                }
            };
            match answer.headers().get(LOCATION) {
                Some(location) if is_redirect(answer.status()) => {
                    url = self.follow(&url, location).map_err(|reason| {
                        let reason = match request.authorization {
                            Some(authorization) => authorization.scrub(reason.into_owned()),
                            None => reason.into_owned(),
                        };
                        Error::Malformed {
                            what: request.what.to_owned(),
                            origin,
                            reason,
                        }
                    })?;
                }
                _ => {
                    let end = deadline.0;
                    return self.receive(request, answer, origin, sink, end).await;
                }
            }
        }
        Err(Error::Malformed {
            what: request.what.to_owned(),
            origin: url.origin().ascii_serialization(),
            reason: format!("more than {MAX_REDIRECTS} redirects"),
        })
    }

    /// Where a redirect leads, if it may be followed.
    fn follow(&self, from: &Url, location: &HeaderValue) -> Result<Url, Cow<'static, str>> {
        let mut to = std::str::from_utf8(location.as_bytes())
            .ok()
            .and_then(|text| from.join(text).ok())
            .ok_or("the redirect's target is not a URL")?;
        // Credentials in a URL would become an Authorization header.
        if !to.username().is_empty() || to.password().is_some() {
            return Err("the redirect's target has credentials".into());
        }
        to.set_fragment(None);
        let target = to.origin().ascii_serialization();
        if from.scheme() == "https" && to.scheme() == "http" {
            return Err(format!("refused a redirect from https to {target}").into());
        }
        if is_here(&to) && !is_here(from) {
            return Err(format!("refused a redirect from the network to {target}").into());
        }
        self.check(&to)
            .map_err(|_| format!("refused a redirect to {target}"))?;
        Ok(to)
    }

    /// Reads the body of the last hop.
    async fn receive(
        &self,
        request: &Request<'_>,
        mut answer: wire::Answer,
        origin: String,
        sink: &mut dyn Sink,
        end: Instant,
    ) -> Result<Attempt> {
        let mut response = Response {
            status: answer.status(),
            headers: answer.headers().clone(),
            body: Bytes::new(),
            origin,
            reason: String::new(),
        };
        if !response.status.is_success() {
            let mut body = Collect::default();
            let end = end.min(Instant::now() + ERROR_BODY_TIME);
            // A refusal is understood without its body as well.
            let _ = self
                .read_body(&mut answer, &mut body, MAX_ERROR_BODY, end)
                .await;
            response.reason = match request.authorization {
                Some(secret) => {
                    problem::scrubbed(response.status, &response.headers, &body.0, |text| {
                        secret.scrub(text)
                    })
                }
                None => problem::summary(response.status, &response.headers, &body.0),
            };
            response.body = body.0.into();
            return Ok(Attempt::Answered(Box::new(response)));
        }
        match self.read_body(&mut answer, sink, request.limit, end).await {
            Ok(()) => Ok(Attempt::Answered(Box::new(response))),
            Err(Unread::Refused(error)) => Err(error),
            Err(Unread::TooLarge) => {
                Err(response.malformed(request.what, format!("more than {} bytes", request.limit)))
            }
            Err(Unread::Broken(reason)) => Ok(Attempt::Failed {
                origin: response.origin,
                reason,
            }),
        }
    }

    async fn read_body(
        &self,
        answer: &mut wire::Answer,
        sink: &mut dyn Sink,
        limit: u64,
        end: Instant,
    ) -> Result<(), Unread> {
        if answer.announced().is_some_and(|size| size > limit) {
            return Err(Unread::TooLarge);
        }
        let mut total = 0_u64;
        let mut progress = 0_u64;
        let mut stalled = Instant::now() + self.timing.stall_window;
        loop {
            let chunk = match timeout_at(end.min(stalled), answer.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(failure)) => return Err(Unread::Broken(failure.reason)),
                Err(_) => {
                    let reason = format!("the answer stopped coming after {total} bytes");
                    return Err(Unread::Broken(reason));
                }
            };
            let room = limit - total;
            let len = chunk.len() as u64;
            // Of a refusal, the part that fits is of use.
            let fits = usize::try_from(room.min(len)).unwrap_or(usize::MAX);
            sink.write(&chunk[..fits]).map_err(Unread::Refused)?;
            if len > room {
                return Err(Unread::TooLarge);
            }
            total += len;
            progress += len;
            if progress >= self.timing.stall_bytes {
                progress = 0;
                stalled = Instant::now() + self.timing.stall_window;
            }
        }
    }
}

/// Why a body was not read to its end.
enum Unread {
    TooLarge,
    Broken(String),
    Refused(Error),
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}
