//! A registry as publishers see it: manifests by name, tags, and requests with credentials.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, LINK};
use http::{Method, StatusCode};
use serde::Deserialize;
use url::Url;

use super::PushError;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::BundleId;
use crate::source::Deadline;
use crate::source::http::{Authorization, Exchange, HttpClient, Lane, Request, Response};
use crate::source::oci::auth::{Authenticator, Scope};
use crate::source::oci::listing::{MAX_LIST, MAX_PAGES, MAX_ROWS};
use crate::source::oci::model::{ACCEPT_MANIFEST, IMAGE_MANIFEST, MAX_MANIFEST};
use crate::source::oci::reference::{Endpoint, Repository};

/// How much longer a manifest may take for each MiB of it.
const PER_MIB: Duration = Duration::from_secs(64);

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A registry, or a part of one, that may be written to.
#[derive(Debug)]
pub struct Remote {
    endpoint: Endpoint,
    name: String,
    http: HttpClient,
    authenticator: Arc<Authenticator>,
    timeout: Duration,
}

/// A manifest that the registry has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its bytes.
    pub bytes: Bytes,
    /// Their digest.
    pub digest: Digest,
    /// What the registry says it is.
    pub media_type: String,
}

/// A request about a repository, before it has credentials.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<Bytes>,
    pub(super) repeatable: bool,
    /// Another repository that is read along the way.
    pub(super) also: Option<&'a Repository>,
}

impl Call<'_> {
    pub(super) fn new(method: Method, url: Url) -> Self {
        Self {
            method,
            url,
            headers: HeaderMap::new(),
            body: None,
            repeatable: true,
            also: None,
        }
    }
}

#[derive(Deserialize)]
struct TagPage {
    tags: Option<Vec<String>>,
}

impl Remote {
    /// The registry at `endpoint`. `timeout` is for each manifest and each small blob; larger ones
    /// get more. Nothing is asked yet.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if it must not be asked: plain HTTP to another machine.
    pub fn new(
        endpoint: Endpoint,
        http: HttpClient,
        authenticator: Arc<Authenticator>,
        timeout: Duration,
    ) -> Result<Self> {
        http.check(endpoint.origin())?;
        Ok(Self {
            name: match endpoint.prefix() {
                "" => endpoint.host(),
                prefix => format!("{}/{prefix}", endpoint.host()),
            },
            endpoint,
            http,
            authenticator,
            timeout,
        })
    }

    /// `HOST[:PORT][/PREFIX]`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where a bundle's versions go: `HOST[:PORT][/PREFIX]/namespace/bundle`.
    pub fn reference(&self, bundle: &BundleId) -> String {
        format!("{}/{bundle}", self.name)
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(super) fn http(&self) -> &HttpClient {
        &self.http
    }

    /// The bundle's repository.
    ///
    /// # Errors
    ///
    /// [`PushError::Name`] if it cannot have one.
    pub fn repository(&self, bundle: &BundleId) -> Result<Repository, PushError> {
        let repository = self.endpoint.repository(bundle);
        repository.ok_or_else(|| PushError::Name(bundle.clone()))
    }

    /// The URL of `path` in a repository.
    pub(super) fn url(&self, repository: &Repository, path: &str) -> Url {
        self.endpoint.url(&format!("{repository}/{path}"))
    }

    /// The manifest that `name`, a tag or a digest, points at; `None` if there is none.
    ///
    /// # Errors
    ///
    /// Those of a request; [`Error::WrongBytes`] if the bytes are not those of the digest.
    pub async fn manifest(&self, repository: &Repository, name: &str) -> Result<Option<Found>> {
        let url = self.url(repository, &format!("manifests/{name}"));
        let what = format!("{repository}:{name}");
        let deadline = Deadline::after(self.timeout);
        let answer = self
            .get(
                repository,
                &url,
                ACCEPT_MANIFEST,
                MAX_MANIFEST,
                &what,
                deadline,
            )
            .await?;
        match answer.status {
            status if status.is_success() => {}
            StatusCode::NOT_FOUND => return Ok(None),
            _ => return Err(answer.error(&what)),
        }
        let digest = Digest::of(&answer.body);
        let header = |name: &HeaderName| {
            let value = answer.headers.get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        // Registries may use other algorithms; then only the name counts.
        let promised = [Some(name.to_owned()), header(&CONTENT_DIGEST)];
        for promised in promised.into_iter().flatten() {
            if promised.starts_with("sha256:")
                && let Ok(expected) = promised.parse::<Digest>()
                && expected != digest
            {
                return Err(Error::WrongBytes {
                    what,
                    expected,
                    origin: answer.origin,
                });
            }
        }
        Ok(Some(Found {
            digest,
            media_type: header(&CONTENT_TYPE).unwrap_or_else(|| IMAGE_MANIFEST.to_owned()),
            bytes: answer.body,
        }))
    }

    /// A small blob, verified.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::WrongBytes`], those of a request.
    pub async fn blob(&self, repository: &Repository, digest: Digest) -> Result<Bytes> {
        let url = self.url(repository, &format!("blobs/{digest}"));
        let what = format!("blob {digest} of {repository}");
        let deadline = Deadline::after(self.timeout);
        let answer = self
            .get(repository, &url, "*/*", MAX_MANIFEST, &what, deadline)
            .await?;
        if !answer.status.is_success() {
            return Err(answer.error(&what));
        }
        if Digest::of(&answer.body) != digest {
            return Err(Error::WrongBytes {
                what,
                expected: digest,
                origin: answer.origin,
            });
        }
        Ok(answer.body)
    }

    /// Points `tag` at the manifest, whose blobs must be there. With `is_new`, registries that can
    /// are asked to refuse it if the tag exists.
    ///
    /// # Errors
    ///
    /// Those of a request; [`Error::Malformed`] if the registry stored something else.
    pub async fn put_manifest(
        &self,
        repository: &Repository,
        tag: &str,
        manifest: &Bytes,
        is_new: bool,
    ) -> Result<()> {
        let what = format!("{repository}:{tag}");
        let mut call = Call::new(
            Method::PUT,
            self.url(repository, &format!("manifests/{tag}")),
        );
        // The body knows better than we do when an existing one is tagged again.
        let media_type = media_type(manifest);
        let media_type =
            HeaderValue::from_str(&media_type).unwrap_or(HeaderValue::from_static(IMAGE_MANIFEST));
        call.headers.insert(CONTENT_TYPE, media_type);
        if is_new {
            call.headers
                .insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        let mib = u32::try_from(manifest.len() >> 20).unwrap_or(u32::MAX);
        let deadline = Deadline::after(self.timeout + PER_MIB * mib);
        call.body = Some(manifest.clone());
        let answer = self.call(repository, call, &what, deadline).await?;
        if is_new && answer.status == StatusCode::PRECONDITION_FAILED {
            // Somebody was faster; the caller looks at what is there now.
            return Ok(());
        }
        if !answer.status.is_success() {
            return Err(answer.error(&what));
        }
        let stored = answer.headers.get(CONTENT_DIGEST);
        let stored = stored.and_then(|value| value.to_str().ok()?.parse::<Digest>().ok());
        match stored {
            Some(stored) if stored != Digest::of(manifest) => {
                Err(answer.malformed(&what, "the registry stored another manifest"))
            }
            _ => Ok(()),
        }
    }

    /// All tags of a repository; none if the registry does not have it.
    ///
    /// # Errors
    ///
    /// Those of a request; [`Error::Malformed`] for a list that never ends.
    pub async fn tags(&self, repository: &Repository) -> Result<Vec<String>> {
        let what = format!("the tags of {repository}");
        let deadline = Deadline::after(self.timeout);
        let mut url = self.url(repository, "tags/list?n=1000");
        let mut tags = Vec::new();
        let mut seen = BTreeSet::new();
        let mut left = MAX_LIST;
        while seen.len() < MAX_PAGES && tags.len() <= MAX_ROWS {
            let answer = self
                .get(repository, &url, "application/json", left, &what, deadline)
                .await?;
            if answer.status == StatusCode::NOT_FOUND {
                return Ok(tags);
            }
            if !answer.status.is_success() {
                return Err(answer.error(&what));
            }
            left = left.saturating_sub(answer.body.len() as u64);
            let page: TagPage = answer.json(&what)?;
            tags.extend(page.tags.unwrap_or_default());
            let next = answer.headers.get(LINK).and_then(next_page);
            let Some(next) = next else {
                return Ok(tags);
            };
            let next = url
                .join(&next)
                .map_err(|error| answer.malformed(&what, error))?;
            if next.origin() != url.origin() || !seen.insert(next.to_string()) {
                return Err(answer.malformed(&what, "its pages lead elsewhere or in a circle"));
            }
            url = next;
        }
        Err(Error::Malformed {
            what,
            origin: self.name.clone(),
            reason: "the list has no end".into(),
        })
    }

    async fn get(
        &self,
        repository: &Repository,
        url: &Url,
        accept: &'static str,
        limit: u64,
        what: &str,
        deadline: Deadline,
    ) -> Result<Response> {
        let scope = Scope::push(repository);
        let ask = async |authorization: Option<&Authorization>| {
            let request = Request {
                lane: Lane::Names,
                url: url.clone(),
                what,
                accept,
                authorization,
                limit,
            };
            self.http.get(&request, deadline).await
        };
        let grant = self.authenticator.current(&scope, what, deadline).await?;
        let answer = ask(grant.as_ref().map(|grant| grant.authorization())).await?;
        if answer.status != StatusCode::UNAUTHORIZED {
            return self.admitted(answer, what);
        }
        let renewed = self
            .authenticator
            .renewed(&scope, grant.as_ref(), &answer, what, deadline)
            .await?;
        self.admitted(ask(Some(renewed.authorization())).await?, what)
    }

    /// Sends a request about `repository` with the credentials that it takes.
    ///
    /// # Errors
    ///
    /// Those of [`HttpClient::exchange`]; [`Error::Denied`].
    pub(super) async fn call(
        &self,
        repository: &Repository,
        call: Call<'_>,
        what: &str,
        deadline: Deadline,
    ) -> Result<Response> {
        // An upload may be led to a storage that is none of the registry.
        let is_ours = call.url.origin() == self.endpoint.origin().origin();
        let mut scope = Scope::push(repository);
        if let Some(also) = call.also {
            scope = scope.and(&Scope::pull(also));
        }
        let send = async |authorization: Option<&Authorization>| {
            let exchange = Exchange {
                method: call.method.clone(),
                url: call.url.clone(),
                what,
                headers: call.headers.clone(),
                authorization,
                body: call.body.clone(),
                secret: None,
                repeatable: call.repeatable,
            };
            self.http.exchange(&exchange, deadline).await
        };
        if !is_ours {
            return send(None).await;
        }
        let grant = self.authenticator.current(&scope, what, deadline).await?;
        let answer = send(grant.as_ref().map(|grant| grant.authorization())).await?;
        if answer.status != StatusCode::UNAUTHORIZED {
            return self.admitted(answer, what);
        }
        let renewed = self
            .authenticator
            .renewed(&scope, grant.as_ref(), &answer, what, deadline)
            .await?;
        self.admitted(send(Some(renewed.authorization())).await?, what)
    }

    /// Turns a refusal of credentials into an error that says what to do about it.
    fn admitted(&self, answer: Response, what: &str) -> Result<Response> {
        match answer.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(self.authenticator.denied(&answer, what))
            }
            _ => Ok(answer),
        }
    }
}

/// The media type that a manifest says it has.
fn media_type(manifest: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
    }
    let typed = serde_json::from_slice::<Typed>(manifest).ok();
    typed
        .and_then(|typed| typed.media_type)
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| IMAGE_MANIFEST.to_owned())
}

/// Where `Link: </v2/…?last=x>; rel="next"` leads.
fn next_page(link: &HeaderValue) -> Option<String> {
    link.to_str().ok()?.split(',').find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = parameters
            .split(';')
            .any(|parameter| matches!(parameter.trim(), "rel=\"next\"" | "rel=next"));
        is_next.then(|| target.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_link_to_the_next_page_is_followed() {
        let next = |text: &str| next_page(&HeaderValue::from_str(text).unwrap());
        assert_eq!(
            next("</v2/a/tags/list?last=x&n=2>; rel=\"next\""),
            Some("/v2/a/tags/list?last=x&n=2".into())
        );
        assert_eq!(next("</a>; rel=prev, </b>; rel=next"), Some("/b".into()));
        for bad in ["", "</a>", "/a; rel=next", "</a>; rel=last"] {
            assert_eq!(next(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_manifest_says_what_it_is() {
        assert_eq!(media_type(br#"{"mediaType":"a/b"}"#), "a/b");
        for none in ["{}", "[]", r#"{"mediaType":""}"#] {
            assert_eq!(media_type(none.as_bytes()), IMAGE_MANIFEST);
        }
    }
}
