//! Asking the sources what a ref is, and checking what they say.
//!
//! Whatever an answer is about, it has to be about what was asked. A registry that does not know
//! ranges refuses them, or answers with its latest version; then the version is chosen here, from
//! the list of versions. So it is where the answer is a yanked version.

use std::sync::Arc;
use std::time::Duration;

use tracing::debug;

use super::{RefKey, Resolution, Resolver, describe, newest, remember_absence};
use crate::cache::REF_TTL;
use crate::error::{Error, Result};
use crate::manifest::{Document, State};
use crate::reference::{BundleId, Selector, Version};
use crate::source::{Deadline, Source};
use crate::sync::lock;

/// The life of what cannot change.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl Resolver {
    /// Asks the sources, however fresh the ref may be.
    ///
    /// # Errors
    ///
    /// What the sources said; nothing older is given instead.
    pub async fn ask(
        self: &Arc<Self>,
        bundle: &BundleId,
        selector: &Selector,
        deadline: Deadline,
    ) -> Result<Resolution> {
        let key = (bundle.clone(), selector.clone());
        let start = || {
            let (resolver, key) = (Arc::clone(self), key.clone());
            async move {
                let budget = Deadline::after(resolver.settings.timeout);
                resolver.ask_now(&key, budget).await
            }
        };
        let what = describe(bundle, selector);
        deadline
            .join(&self.flights, &key, what, &self.settings.metrics, start)
            .await
    }

    async fn ask_now(&self, key: &RefKey, deadline: Deadline) -> Result<Resolution> {
        let (bundle, selector) = key;
        let what = describe(bundle, selector);
        let mut failure = Error::Offline { what: what.clone() };
        let sources = &self.settings.sources;
        for (asked, source) in sources.iter().enumerate() {
            let share = deadline.share(sources.len() - asked);
            let asking = self.ask_source(source, bundle, selector, share);
            match share.run(&what, asking).await {
                Ok((version, document)) => {
                    lock(&self.absent).remove(key);
                    let document =
                        document.map(|document| Arc::new((document, source.name().to_owned())));
                    let resolution = Resolution {
                        document,
                        ..self.resolution(version, life(selector))
                    };
                    self.remember(key, &resolution).await;
                    return Ok(resolution);
                }
                Err(error) => {
                    debug!(%bundle, %selector, source = source.name(), %error, "not resolved");
                    failure = error;
                }
            }
        }
        if failure.is_absence() {
            remember_absence(&self.absent, key.clone());
        }
        Err(failure)
    }

    /// One source's answer, checked against what was asked.
    async fn ask_source(
        &self,
        source: &Arc<dyn Source>,
        bundle: &BundleId,
        selector: &Selector,
        deadline: Deadline,
    ) -> Result<(Version, Option<Document>)> {
        let asked = source.resolve(bundle, selector, deadline).await;
        let document = match (asked, selector) {
            (Ok(document), _) => document,
            // A registry that does not know ranges says no to them in one way or another.
            (Err(Error::Rejected { .. } | Error::NotFound { .. }), Selector::Range { .. }) => {
                return self.choose(source, bundle, selector, deadline).await;
            }
            (Err(error), _) => return Err(error),
        };
        let malformed = |reason: String| Error::Malformed {
            what: describe(bundle, selector),
            origin: source.name().to_owned(),
            reason,
        };
        for (found, wanted) in [
            (&document.namespace, bundle.namespace.as_str()),
            (&document.slug, bundle.slug.as_str()),
        ] {
            if let Some(found) = found.as_deref().filter(|found| *found != wanted) {
                let found: String = found.chars().take(100).collect();
                return Err(malformed(format!("the answer is about {found:?}")));
            }
        }
        if let Selector::Digest(digest) = selector {
            let named = document.info.oci_digest.as_deref();
            if named.and_then(|text| text.parse().ok()) != Some(*digest) {
                return Err(malformed("the answer has another digest".to_owned()));
            }
        }
        let version: Version = document
            .version
            .as_deref()
            .ok_or_else(|| malformed("the answer names no version".to_owned()))?
            .parse()
            .map_err(|_| malformed("the answer's version is not SemVer".to_owned()))?;
        let yanked = document.info.state == State::Yanked;
        self.note_state(bundle, &version, document.info.state);
        match selector {
            // A registry that ignores ranges answers with whatever is its latest.
            Selector::Range { req, .. } if yanked || !req.matches(version.semver()) => {
                self.choose(source, bundle, selector, deadline).await
            }
            Selector::Latest if yanked => self.choose(source, bundle, selector, deadline).await,
            Selector::Tag(_) if yanked => Err(Error::not_found(format_args!(
                "{} (it points at {version}, which is yanked)",
                describe(bundle, selector)
            ))),
            _ => Ok((version, Some(document))),
        }
    }

    /// Chooses from the list of versions what the registry would not choose.
    async fn choose(
        &self,
        source: &Arc<dyn Source>,
        bundle: &BundleId,
        selector: &Selector,
        deadline: Deadline,
    ) -> Result<(Version, Option<Document>)> {
        let rows = source.versions(bundle, deadline).await?;
        let rows = self.remember_versions(bundle, rows);
        let published = rows
            .iter()
            .filter(|row| row.state == State::Published)
            .map(|row| &row.version);
        let chosen = newest(published, selector).cloned();
        let chosen = chosen.ok_or_else(|| Error::not_found(describe(bundle, selector)))?;
        Ok((chosen, None))
    }
}

/// How long a source's answer for `selector` is fresh.
fn life(selector: &Selector) -> Duration {
    if selector.is_mutable() {
        REF_TTL
    } else {
        FOREVER
    }
}
