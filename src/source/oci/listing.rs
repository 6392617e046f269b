//! Tags and repositories: paged lists, and what their entries mean.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use http::header::{HeaderMap, LINK};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::auth::Scope;
use super::client::{Ask, RegistryClient};
use super::parse;
use super::reference::{Repository, StateTag, version_of};
use crate::error::Result;
use crate::manifest::State;
use crate::reference::{Namespace, Slug, Version};
use crate::source::http::{Lane, Response};
use crate::source::{Deadline, Published};

/// Most pages of a list.
pub(crate) const MAX_PAGES: usize = 10_000;
/// Most entries of a list.
pub(crate) const MAX_ROWS: usize = 1_000_000;
/// Most bytes of all its pages together.
pub(crate) const MAX_LIST: u64 = 32 << 20;

/// What the tags of a repository say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::source) struct Tags {
    /// All versions and whether they may be chosen.
    pub(in crate::source) versions: BTreeMap<Version, State>,
}

impl Tags {
    pub(in crate::source) fn of(tags: impl IntoIterator<Item = String>) -> Self {
        let mut versions = BTreeMap::new();
        let mut changes: HashMap<Version, (u32, State)> = HashMap::new();
        for tag in tags {
            if let Ok(change) = tag.parse::<StateTag>() {
                let newest = changes
                    .entry(change.version)
                    .or_insert((0, State::Published));
                let same = change.sequence == newest.0 && change.state == State::Yanked;
                if change.sequence > newest.0 || same {
                    *newest = (change.sequence, change.state);
                }
            } else if let Some(version) = version_of(&tag) {
                versions.insert(version, State::Published);
            }
        }
        for (version, (_, state)) in changes {
            // A version whose tag is gone has no state.
            if let Some(known) = versions.get_mut(&version) {
                *known = state;
            }
        }
        Self { versions }
    }

    pub(in crate::source) fn state(&self, version: &Version) -> State {
        self.versions.get(version).copied().unwrap_or_default()
    }

    /// The newest that may be chosen; a pre-release only if there is nothing else.
    pub(in crate::source) fn newest(&self) -> Option<&Version> {
        let mut offered = self
            .versions
            .iter()
            .rev()
            .filter(|(_, state)| **state == State::Published)
            .map(|(version, _)| version);
        let newest = offered.clone().find(|version| !version.is_prerelease());
        newest.or_else(|| offered.next())
    }

    pub(in crate::source) fn rows(&self) -> Vec<Published> {
        let row = |(version, state): (&Version, &State)| Published {
            version: version.clone(),
            state: *state,
            oci_digest: None,
        };
        self.versions.iter().map(row).collect()
    }
}

/// What the registry's catalog says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Catalog {
    /// The registry has none, or not for us.
    Closed,
    /// Bundles by namespace.
    Open(BTreeMap<Namespace, BTreeSet<Slug>>),
}

#[derive(Deserialize)]
struct TagPage {
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct CatalogPage {
    repositories: Option<Vec<String>>,
}

impl RegistryClient {
    /// All tags of a repository.
    pub(super) async fn tags(
        &self,
        repository: &Repository,
        what: &str,
        deadline: Deadline,
    ) -> Result<Tags> {
        let scope = Scope::pull(repository);
        let path = format!("{repository}/tags/list");
        let rows = self
            .pages(&scope, &path, what, deadline, |page: TagPage| {
                page.tags.unwrap_or_default()
            })
            .await?;
        match rows {
            Ok(tags) => Ok(Tags::of(tags)),
            Err(refusal) => Err(self.refusal(&refusal, what)),
        }
    }

    /// All bundles of the registry, if it tells.
    pub(super) async fn catalog(&self, deadline: Deadline) -> Result<Catalog> {
        let what = format!("the list of bundles of {}", self.endpoint());
        let asked = self
            .pages(
                &Scope::catalog(),
                "_catalog",
                &what,
                deadline,
                |page: CatalogPage| page.repositories.unwrap_or_default(),
            )
            .await;
        let repositories = match asked {
            Ok(Ok(repositories)) => repositories,
            // Most registries that have many users do not tell.
            Ok(Err(refusal)) if refusal.status.is_client_error() => return Ok(Catalog::Closed),
            Ok(Err(refusal)) => return Err(self.refusal(&refusal, &what)),
            Err(crate::error::Error::Denied { .. }) => return Ok(Catalog::Closed),
            Err(error) => return Err(error),
        };
        let mut bundles: BTreeMap<Namespace, BTreeSet<Slug>> = BTreeMap::new();
        for name in repositories {
            if let Some(bundle) = self.endpoint().bundle(&name) {
                let slugs = bundles.entry(bundle.namespace).or_default();
                slugs.insert(bundle.slug);
            }
        }
        Ok(Catalog::Open(bundles))
    }

    /// Collects the rows of all pages; the inner error is the refusal of the first.
    async fn pages<P: DeserializeOwned + Send + 'static>(
        &self,
        scope: &Scope,
        path: &str,
        what: &str,
        deadline: Deadline,
        rows_of: impl Fn(P) -> Vec<String> + Send,
    ) -> Result<Result<Vec<String>, Response>> {
        let mut left = MAX_LIST;
        let ask = |path, limit| Ask {
            lane: Lane::Names,
            scope,
            path,
            accept: "application/json",
            what,
            limit,
        };
        let sized = format!("{path}?n=1000");
        let mut response = self.get(ask(&sized, left), deadline).await?;
        let mut url = self.endpoint().url(path);
        if response.status.as_u16() == 400 {
            // It wants smaller pages, or none.
            response = self.get(ask(path, left), deadline).await?;
        }
        if !response.status.is_success() {
            return Ok(Err(response));
        }
        let mut rows: Vec<String> = Vec::new();
        let mut seen = HashSet::new();
        loop {
            left = left.saturating_sub(response.body.len() as u64);
            let read = |json: &[u8]| serde_json::from_slice(json).map_err(|e| e.to_string());
            let page = parse(response.body.clone(), read).await?;
            rows.extend(rows_of(
                page.map_err(|reason| response.malformed(what, reason))?,
            ));
            let Some(next) = next_page(&response.headers) else {
                return Ok(Ok(rows));
            };
            url = url
                .join(&next)
                .ok()
                .filter(|url| url.origin() == self.endpoint().origin().origin())
                .ok_or_else(|| response.malformed(what, "the next page is not in this registry"))?;
            let endless = !seen.insert(url.clone()) || seen.len() >= MAX_PAGES;
            if endless || rows.len() > MAX_ROWS {
                return Err(response.malformed(what, "the list has no end"));
            }
            let next = ask(path, left);
            response = self.get_from(url.clone(), next, deadline).await?;
            if !response.status.is_success() {
                return Err(self.refusal(&response, what));
            }
        }
    }
}

/// The target of the `Link` to the next page.
fn next_page(headers: &HeaderMap) -> Option<String> {
    headers.get_all(LINK).iter().find_map(|value| {
        let text = value.to_str().ok()?;
        text.split(", <").find_map(|link| {
            let link = link.trim().trim_start_matches('<');
            let (target, parameters) = link.split_once('>')?;
            let is_next = parameters.split(';').any(|parameter| {
                let parameter = parameter.trim().to_ascii_lowercase();
                parameter == "rel=next" || parameter == "rel=\"next\""
            });
            is_next.then(|| target.to_owned())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(tags: &[&str]) -> Tags {
        Tags::of(tags.iter().map(|tag| (*tag).to_owned()))
    }

    #[test]
    fn the_newest_version_is_the_newest_that_may_be_chosen() {
        let newest = |list: &[&str]| tags(list).newest().map(ToString::to_string);
        assert_eq!(
            newest(&["1.0.0", "1.10.0", "1.9.0", "latest"]).unwrap(),
            "1.10.0"
        );
        assert_eq!(newest(&["1.0.0", "2.0.0-rc.1"]).unwrap(), "1.0.0");
        assert_eq!(newest(&["2.0.0-rc.1", "2.0.0-rc.2"]).unwrap(), "2.0.0-rc.2");
        assert_eq!(newest(&["1.0.0_b", "stable"]).unwrap(), "1.0.0+b");
        assert_eq!(
            newest(&["1.0.0", "1.1.0", "_yanked.1.1.1.0"]).unwrap(),
            "1.0.0"
        );
        assert_eq!(newest(&["1.0.0", "_yanked.1.1.0.0"]), None);
        assert_eq!(newest(&["latest"]), None);
    }

    #[test]
    fn the_last_change_of_a_state_counts() {
        let state = |list: &[&str]| tags(list).state(&"1.0.0".parse().unwrap());
        let (yanked, published) = ("_yanked.9.1.0.0", "_published.10.1.0.0");
        assert_eq!(state(&["1.0.0", yanked]), State::Yanked);
        assert_eq!(state(&[published, "1.0.0", yanked]), State::Published);
        assert_eq!(
            state(&["1.0.0", "_published.9.1.0.0", yanked]),
            State::Yanked
        );
        assert_eq!(state(&["1.0.0", "_yanked.1.1.0.1"]), State::Published);
        assert!(tags(&[yanked]).versions.is_empty());
    }

    #[test]
    fn the_link_to_the_next_page_is_found_among_others() {
        let next = |link: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(LINK, link.parse().unwrap());
            next_page(&headers)
        };
        let target = Some("/v2/a/b/tags/list?n=2&last=x".to_owned());
        assert_eq!(next("</v2/a/b/tags/list?n=2&last=x>; rel=\"next\""), target);
        assert_eq!(
            next("</p>; rel=prev, </v2/a/b/tags/list?n=2&last=x>;rel=next"),
            target
        );
        assert_eq!(next("</p>; rel=prev"), None);
        assert_eq!(next("<"), None);
    }
}
