//! Requests that carry something: HEAD, POST, PATCH and PUT, for those who publish.
//!
//! The rules are those of the parent: one [`Deadline`], credentials for the origin that was asked
//! and no other, plain HTTP for loopback only. What differs:
//!
//! - A body takes time to send, so an attempt may take longer the more it carries (`SLOWEST`).
//! - Only what may safely happen twice is tried twice ([`Exchange::repeatable`]).
//! - A redirect is followed with its method and body where HTTP says so (307, 308; for HEAD all of
//!   them), and is the answer otherwise. An upload's `Location` is no redirect: its reader turns it
//!   into a URL with [`target`] and decides who gets credentials there.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use http::{Method, StatusCode};
use tokio::time::{Instant, timeout_at};
use tracing::debug;
use url::Url;
use uuid::Uuid;

use super::{
    Attempt, Authorization, Clock, Collect, HttpClient, Lane, MAX_ERROR_BODY, MAX_REDIRECTS,
    Response, Unread, X_REQUEST_ID, is_redirect, problem, retry, without,
};
use crate::error::{Error, Result};
use crate::metrics::Counter;
use crate::source::Deadline;

/// The slowest connection that an upload gets along with, in bytes a second: what is slower than a
/// bad mobile connection is taken for stuck.
const SLOWEST: u64 = 16 << 10;

/// One request that is not a GET.
#[derive(Debug, Clone)]
pub struct Exchange<'a> {
    /// What is to be done.
    pub method: Method,
    /// Where.
    pub url: Url,
    /// What it is about, in the user's words, for errors.
    pub what: &'a str,
    /// Media types and ranges; not credentials.
    pub headers: HeaderMap,
    /// Credentials for the origin of `url`.
    pub authorization: Option<&'a Authorization>,
    /// What is sent; `None` for HEAD.
    pub body: Option<Bytes>,
    /// A credential in the body: it goes to the origin of `url` only, and into no message.
    pub secret: Option<&'a str>,
    /// Whether the request may be sent again when it is not known what became of it.
    pub repeatable: bool,
}

impl Exchange<'_> {
    /// Removes what was secret in the request from what a server wrote.
    fn scrub(&self, text: String) -> String {
        let text = match self.authorization {
            Some(authorization) => authorization.scrub(text),
            None => text,
        };
        match self.secret {
            Some(secret) => without(text, secret),
            None => text,
        }
    }
}

/// Where an answer's `Location` leads: relative to `from` or on another host, never from https to
/// http, from the network to loopback, or with credentials in it.
///
/// # Errors
///
/// [`Error::Malformed`] about `what`.
pub fn target(client: &HttpClient, from: &Url, answer: &Response, what: &str) -> Result<Url> {
    let location = answer
        .headers
        .get(LOCATION)
        .ok_or_else(|| answer.malformed(what, "the answer has no Location"))?;
    client
        .follow(from, location)
        .map_err(|reason| answer.malformed(what, reason))
}

impl HttpClient {
    /// Sends a request and collects the answer's body, which is small: an answer to a HEAD has
    /// none, and one to an upload says little.
    ///
    /// # Errors
    ///
    /// Those of [`HttpClient::get`].
    pub async fn exchange(&self, exchange: &Exchange<'_>, deadline: Deadline) -> Result<Response> {
        self.check(&exchange.url)?;
        let mut clock = Clock::start(exchange.what, deadline);
        let attempts = if exchange.repeatable {
            self.timing.attempts
        } else {
            1
        };
        let mut attempt = 1;
        loop {
            if deadline.is_over() {
                return Err(clock.timed_out());
            }
            let outcome = {
                // No mount gets content in this way.
                let _place = clock.queue(self.lanes.of(Lane::Names)).await?;
                self.exchange_once(exchange, attempt, deadline).await?
            };
            let wanted = match &outcome {
                Attempt::Answered(response) if !retry::may_help(response.status) => None,
                Attempt::Answered(response) => Some(
                    response
                        .headers
                        .get(RETRY_AFTER)
                        .and_then(retry::after)
                        .unwrap_or_default(),
                ),
                Attempt::Failed { .. } => Some(Duration::ZERO),
            };
            if let Some(wanted) = wanted
                && attempt < attempts
            {
                let pause = self.timing.pause(attempt).max(wanted);
                if pause < deadline.remaining() {
                    debug!(what = exchange.what, attempt, ?pause, "will try again");
                    tokio::time::sleep(pause).await;
                    attempt += 1;
                    continue;
                }
            }
            return match outcome {
                Attempt::Answered(response) => Ok(*response),
                Attempt::Failed { .. } if deadline.is_over() => Err(clock.timed_out()),
                Attempt::Failed { origin, reason } => Err(Error::Unreachable {
                    origin,
                    reason: match attempt {
                        1 => reason,
                        _ => format!("{reason} (after {attempt} attempts)"),
                    },
                }),
            };
        }
    }

    async fn exchange_once(
        &self,
        exchange: &Exchange<'_>,
        attempt: u32,
        deadline: Deadline,
    ) -> Result<Attempt> {
        let size = exchange.body.as_ref().map_or(0, Bytes::len) as u64;
        let sending = Duration::from_secs(size / SLOWEST);
        let end = deadline.0;
        let first_byte = end.min(Instant::now() + self.timing.first_byte + sending);
        let asked = exchange.url.origin();
        let mut url = exchange.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let origin = url.origin().ascii_serialization();
            let id = Uuid::new_v4().to_string();
            let mut headers = exchange.headers.clone();
            if let Ok(id) = HeaderValue::from_str(&id) {
                headers.insert(X_REQUEST_ID, id);
            }
            if let Some(authorization) = exchange.authorization
                && url.origin() == asked
            {
                headers.insert(AUTHORIZATION, authorization.header.clone());
            }
            self.metrics.count(Counter::SourceRequests);
            let method = exchange.method.clone();
            let sending = self
                .wires
                .send_body(method, &url, headers, exchange.body.clone())?;
            let sent = timeout_at(first_byte, sending).await;
            let status = match &sent {
                Ok(Ok(answer)) => answer.status().as_u16(),
                Ok(Err(_)) | Err(_) => 0,
            };
            debug!(method = %exchange.method, path = url.path(), status, attempt, size, request_id = %id, "asked");
            let mut answer = match sent {
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
            if let Some(location) = answer.headers().get(LOCATION)
                && redirects(&exchange.method, answer.status())
            {
                let refused = |reason: &str| Error::Malformed {
                    what: exchange.what.to_owned(),
                    origin: origin.clone(),
                    reason: reason.to_owned(),
                };
                url = self
                    .follow(&url, location)
                    .map_err(|reason| Error::Malformed {
                        what: exchange.what.to_owned(),
                        origin: origin.clone(),
                        reason: exchange.scrub(reason.into_owned()),
                    })?;
                if exchange.secret.is_some() && url.origin() != asked {
                    return Err(refused("it would pass a login on to another host"));
                }
                continue;
            }
            let mut body = Collect::default();
            let read = self
                .read_body(&mut answer, &mut body, MAX_ERROR_BODY, end)
                .await;
            let mut response = Response {
                status: answer.status(),
                headers: answer.headers().clone(),
                body: body.0.into(),
                origin,
                reason: String::new(),
            };
            if !response.status.is_success() {
                response.reason =
                    problem::scrubbed(response.status, &response.headers, &response.body, |text| {
                        exchange.scrub(text)
                    });
            }
            return Ok(match read {
                // What was done is known by the status; the body is for people.
                Ok(()) | Err(Unread::TooLarge | Unread::Refused(_)) => {
                    Attempt::Answered(Box::new(response))
                }
                Err(Unread::Broken(_)) if response.status.is_success() => {
                    Attempt::Answered(Box::new(response))
                }
                Err(Unread::Broken(reason)) => Attempt::Failed {
                    origin: response.origin,
                    reason,
                },
            });
        }
        Err(Error::Malformed {
            what: exchange.what.to_owned(),
            origin: url.origin().ascii_serialization(),
            reason: format!("more than {MAX_REDIRECTS} redirects"),
        })
    }
}

/// Whether an answer says that the same request belongs elsewhere.
fn redirects(method: &Method, status: StatusCode) -> bool {
    match *method {
        Method::HEAD => is_redirect(status),
        _ => matches!(status.as_u16(), 307 | 308),
    }
}
