//! Files' bytes, whichever way they come.
//!
//! Servers have quirks here, and the manifest's hash is the judge of all of them: text may have
//! lost its last newline; `null` means "not now", never "empty"; an answer may be the bytes
//! themselves or JSON around them, and a file may itself look like such JSON.

use bytes::Bytes;
use serde::Deserialize;
use tracing::debug;

use super::route::{Route, Side, Slashes};
use super::{ApiSource, MAX_ASSET, Trail, read};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Entry, Manifest};
use crate::reference::VersionRef;
use crate::source::Deadline;
use crate::source::http::{MAX_ANSWER, Response};

/// What surrounds a file's text in a JSON answer, at most.
const ENVELOPE: u64 = 64 << 10;

/// All content of a version. Its `manifest` is a list of texts, without hashes.
#[derive(Deserialize)]
pub(super) struct Pull {
    namespace: Option<String>,
    slug: Option<String>,
    version: Option<String>,
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    pub(super) manifest: Vec<PullAsset>,
}

/// One file of a [`Pull`].
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PullAsset {
    pub(super) logical_path: String,
    pub(super) asset_type: Option<String>,
    pub(super) content_text: Option<String>,
    pub(super) media_type: Option<String>,
}

impl Pull {
    /// Whether it is about `id`, as far as it says.
    pub(super) fn check(&self, id: &VersionRef) -> Result<(), String> {
        for (found, wanted) in [
            (&self.namespace, id.bundle.namespace.as_str()),
            (&self.slug, id.bundle.slug.as_str()),
            (&self.version, id.version.as_str()),
        ] {
            if let Some(found) = found.as_deref().filter(|found| *found != wanted) {
                let found: String = found.chars().take(100).collect();
                return Err(format!("it is about {found:?}"));
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    content_text: Option<String>,
}

/// What the manifest says about a file's bytes.
#[derive(Clone, Copy)]
struct Expected {
    digest: Digest,
    size: u64,
}

impl Expected {
    fn of(file: Entry<'_>) -> Self {
        Self {
            digest: file.digest(),
            size: file.size(),
        }
    }

    /// `bytes`, with the newline that they may have lost, if hash and size then match.
    fn repair(self, bytes: Bytes) -> Option<Bytes> {
        for newline in ["", "\n", "\r\n"] {
            if bytes.len() as u64 + newline.len() as u64 != self.size {
                continue;
            }
            let whole = if newline.is_empty() {
                bytes.clone()
            } else {
                [&bytes, newline.as_bytes()].concat().into()
            };
            if Digest::of(&whole) == self.digest {
                return Some(whole);
            }
        }
        None
    }
}

/// What an answer turned out to be.
enum Answer {
    Content(Bytes),
    /// The server has no content at the moment.
    Unavailable,
    /// Bytes, but others.
    Wrong,
}

/// Decides by the hash whether the body is the content or JSON around it.
fn judge(response: &Response, what: &str, expected: Expected) -> Result<Answer> {
    if let Some(bytes) = expected.repair(response.body.clone()) {
        return Ok(Answer::Content(bytes));
    }
    if !response.body.trim_ascii_start().starts_with(b"{") {
        return Ok(Answer::Wrong);
    }
    let envelope: Envelope = response.json(what)?;
    let Some(text) = envelope.content_text else {
        return Ok(Answer::Unavailable);
    };
    Ok(match expected.repair(text.into()) {
        Some(bytes) => Answer::Content(bytes),
        None => Answer::Wrong,
    })
}

/// What went wrong on the routes asked so far.
#[derive(Default)]
struct Failures {
    trail: Trail,
    wrong: bool,
    outage: Option<Error>,
    malformed: Option<Error>,
}

impl ApiSource {
    /// The verified content of a file.
    pub(super) async fn content(
        &self,
        manifest: &Manifest,
        file: Entry<'_>,
        deadline: Deadline,
    ) -> Result<Bytes> {
        let what = format!("{}/{}", manifest.id(), file.path());
        let expected = Expected::of(file);
        if expected.size > MAX_ASSET {
            let reason = format!("files over {} MiB do not fit its answers", MAX_ASSET >> 20);
            return Err(self.malformed(&what, &reason));
        }
        let has_key = self.has_key(&what, deadline).await?;
        let mut failures = Failures::default();
        for side in Side::order(has_key) {
            for slashes in [Slashes::Plain, Slashes::Encoded] {
                let route = side.asset(manifest.id(), file.path(), slashes);
                match self
                    .one(&route, &what, expected, &mut failures, deadline)
                    .await?
                {
                    Step::Done(bytes) => return Ok(bytes),
                    Step::Absent if file.path().contains('/') => {}
                    Step::Absent | Step::Next => break,
                }
            }
        }
        if has_key && !file.asset_id().is_empty() {
            let route = Route::asset_by_id(file.asset_id());
            let step = self.one(&route, &what, expected, &mut failures, deadline);
            if let Step::Done(bytes) = step.await? {
                return Ok(bytes);
            }
        }
        match self.pull_all(manifest, deadline).await {
            Ok(assets) => {
                let text = assets
                    .into_iter()
                    .flatten()
                    .find(|(path, _)| path == file.path());
                match text.map(|(_, text)| expected.repair(text)) {
                    Some(Some(bytes)) => return Ok(bytes),
                    Some(None) => failures.wrong = true,
                    None => {}
                }
            }
            Err(error @ Error::Malformed { .. }) => failures.malformed = Some(error),
            Err(error @ Error::Timeout { .. }) => return Err(error),
            Err(error) if error.is_outage() => failures.outage = Some(error),
            Err(error) => return Err(error),
        }
        if failures.wrong {
            return Err(Error::WrongBytes {
                what,
                expected: expected.digest,
                origin: self.base.clone(),
            });
        }
        let failure = failures.outage.or(failures.malformed);
        // A file that a manifest lists is not absent: who is refused should hear that.
        let denied = failures.trail.denied.take();
        Err(failure
            .or(denied)
            .unwrap_or_else(|| failures.trail.end(&what)))
    }

    /// Asks one route for one file.
    ///
    /// # Errors
    ///
    /// Only what makes further routes pointless.
    async fn one(
        &self,
        route: &Route,
        what: &str,
        expected: Expected,
        failures: &mut Failures,
        deadline: Deadline,
    ) -> Result<Step> {
        // In JSON, every byte may be written as `\u00xx`.
        let limit = (expected.size * 6 + ENVELOPE).min(MAX_ANSWER);
        let response = match self.ask(route, what, limit, deadline).await {
            Ok(response) => response,
            Err(error @ Error::Malformed { .. }) => {
                failures.malformed = Some(error);
                return Ok(Step::Next);
            }
            Err(error) => return Err(error),
        };
        let status = response.status.as_u16();
        if !response.status.is_success() {
            // Asking elsewhere would be no answer to "you ask too much".
            let error = match failures.trail.pass(&response, what) {
                Ok(()) if matches!(status, 404 | 410) => return Ok(Step::Absent),
                Ok(()) => return Ok(Step::Next),
                Err(error) if status == 429 => return Err(error),
                Err(error) => error,
            };
            if error.is_outage() {
                failures.outage = Some(error);
            } else {
                failures.malformed = Some(error);
            }
            return Ok(Step::Next);
        }
        let judged = read(response, what, move |response, what| {
            judge(response, what, expected)
        });
        match judged.await {
            Ok(Answer::Content(bytes)) => return Ok(Step::Done(bytes)),
            Ok(Answer::Unavailable) => {
                failures.outage = Some(Error::Unreachable {
                    origin: self.base.clone(),
                    reason: format!("it has no content for {what} at the moment"),
                });
            }
            Ok(Answer::Wrong) => {
                debug!(what, target = route.target, "wrong bytes");
                failures.wrong = true;
            }
            Err(error) => failures.malformed = Some(error),
        }
        Ok(Step::Next)
    }

    /// The texts of all files, repaired where the manifest shows how; `None` if no route has them
    /// or they would not fit one answer.
    pub(super) async fn pull_all(
        &self,
        manifest: &Manifest,
        deadline: Deadline,
    ) -> Result<Option<Vec<(String, Bytes)>>> {
        if manifest.content_size() > MAX_ANSWER {
            return Ok(None);
        }
        let what = manifest.id().to_string();
        let has_key = self.has_key(&what, deadline).await?;
        let mut trail = Trail::default();
        for side in Side::order(has_key) {
            let route = side.pull(manifest.id());
            let pull: Option<Pull> = self.ask_json(&route, &what, &mut trail, deadline).await?;
            let Some(pull) = pull else { continue };
            pull.check(manifest.id())
                .map_err(|reason| self.malformed(&what, &reason))?;
            let assets = pull.manifest.into_iter().filter_map(|asset| {
                let text = Bytes::from(asset.content_text?);
                let file = manifest.find(&asset.logical_path);
                let repaired = file
                    .filter(Entry::is_file)
                    .and_then(|file| Expected::of(file).repair(text.clone()));
                Some((asset.logical_path, repaired.unwrap_or(text)))
            });
            return Ok(Some(assets.collect()));
        }
        Ok(None)
    }
}

/// What to do after one route.
enum Step {
    Done(Bytes),
    /// It does not know the file, maybe because of how its path was written.
    Absent,
    Next,
}
