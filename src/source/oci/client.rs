//! Requests to one registry, let in by its [`Authenticator`].
//!
//! A request that is refused with a 401 is sent once more with what the authenticator gets for it.
//! Whoever asks for something by digest gets those bytes or an error.

use bytes::Bytes;
use http::Method;
use http::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::auth::{Authenticator, Scope};
use super::model::{ACCEPT_MANIFEST, MAX_MANIFEST};
use super::reference::{Endpoint, Repository};
use crate::credentials::docker::LoginChain;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::source::http::{Exchange, HttpClient, Lane, Request, Response};
use crate::source::{Deadline, Sink};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// One registry.
#[derive(Debug)]
pub struct RegistryClient {
    http: HttpClient,
    endpoint: Endpoint,
    auth: Authenticator,
    /// The registry that this one stands in for, if it does.
    stands_for: Option<String>,
}

/// A GET below `/v2/`.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// What the request is for.
    pub lane: Lane,
    /// What the request may do.
    pub scope: &'a Scope,
    /// Path and query behind `/v2/`.
    pub path: &'a str,
    /// The media types that are understood.
    pub accept: &'static str,
    /// What is asked for, in the user's words.
    pub what: &'a str,
    /// Most bytes of the answer.
    pub limit: u64,
}

impl RegistryClient {
    /// For the registry at `endpoint`.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if it must not be asked: see [`HttpClient::check`].
    pub fn new(endpoint: Endpoint, http: HttpClient, logins: LoginChain) -> Result<Self> {
        http.check(endpoint.origin())?;
        Ok(Self {
            auth: Authenticator::new(http.clone(), endpoint.clone(), logins),
            http,
            endpoint,
            stands_for: None,
        })
    }

    /// The same for a mirror of the registry at `host`: mirrors of several registries are told with
    /// each request which one is meant, as containerd tells them (`?ns=`).
    pub fn standing_for(mut self, host: String) -> Self {
        self.stands_for = Some(host);
        self
    }

    /// Whether this is a mirror of another registry.
    pub fn is_mirror(&self) -> bool {
        self.stands_for.is_some()
    }

    /// Which registry this is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What lets requests in.
    pub fn auth(&self) -> &Authenticator {
        &self.auth
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.endpoint.url(path);
        if let Some(host) = &self.stands_for {
            url.query_pairs_mut().append_pair("ns", host);
        }
        url
    }

    /// Asks, and writes the body of a success into `sink`.
    ///
    /// # Errors
    ///
    /// [`Error::Denied`] for a 401 that stays one, and those of [`HttpClient::download`].
    pub async fn download(
        &self,
        ask: Ask<'_>,
        sink: &mut dyn Sink,
        deadline: Deadline,
    ) -> Result<Response> {
        self.download_from(self.url(ask.path), ask, sink, deadline)
            .await
    }

    async fn download_from(
        &self,
        url: Url,
        ask: Ask<'_>,
        sink: &mut dyn Sink,
        deadline: Deadline,
    ) -> Result<Response> {
        let mut grant = self.auth.current(ask.scope, ask.what, deadline).await?;
        let mut renewed = false;
        loop {
            let request = Request {
                lane: ask.lane,
                url: url.clone(),
                what: ask.what,
                accept: ask.accept,
                authorization: grant.as_deref().map(|grant| grant.authorization()),
                limit: ask.limit,
            };
            let response = self.http.download(&request, sink, deadline).await?;
            match response.status.as_u16() {
                401 if !renewed => {
                    renewed = true;
                    let used = grant.as_ref();
                    let next = self
                        .auth
                        .renewed(ask.scope, used, &response, ask.what, deadline);
                    grant = Some(next.await?);
                }
                401 => return Err(self.auth.denied(&response, ask.what)),
                _ => return Ok(response),
            }
        }
    }

    /// Asks and collects the body.
    ///
    /// # Errors
    ///
    /// Those of [`RegistryClient::download`].
    pub async fn get(&self, ask: Ask<'_>, deadline: Deadline) -> Result<Response> {
        self.get_from(self.url(ask.path), ask, deadline).await
    }

    /// Asks at `url`, which is on this registry.
    pub(super) async fn get_from(
        &self,
        url: Url,
        ask: Ask<'_>,
        deadline: Deadline,
    ) -> Result<Response> {
        let mut body = Vec::new();
        let mut response = self.download_from(url, ask, &mut body, deadline).await?;
        if response.status.is_success() {
            response.body = body.into();
        }
        Ok(response)
    }

    /// The error for an answer that is no success.
    pub fn refusal(&self, response: &Response, what: &str) -> Error {
        self.auth.denied(response, what)
    }

    /// Fetches a manifest by tag or digest. One that was asked for by digest has it.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Malformed`] if the bytes are not what the registry or the
    /// caller says they are, and those of [`RegistryClient::download`].
    pub async fn manifest(
        &self,
        repository: &Repository,
        reference: &str,
        what: &str,
        deadline: Deadline,
    ) -> Result<(Digest, Bytes)> {
        let scope = Scope::pull(repository);
        let path = format!("{repository}/manifests/{reference}");
        let ask = Ask {
            lane: Lane::Names,
            scope: &scope,
            path: &path,
            accept: ACCEPT_MANIFEST,
            what,
            limit: MAX_MANIFEST,
        };
        let response = self.get(ask, deadline).await?;
        if !response.status.is_success() {
            return Err(self.refusal(&response, what));
        }
        let digest = Digest::of(&response.body);
        let asked = reference.parse::<Digest>().ok();
        let announced = announced(&response);
        for expected in [asked, announced].into_iter().flatten() {
            if expected != digest {
                let reason = format!("the manifest is {digest}, not {expected}");
                return Err(response.malformed(what, reason));
            }
        }
        Ok((digest, response.body))
    }

    /// The digest of the manifest that a tag points at; `None` if there is no such tag.
    ///
    /// # Errors
    ///
    /// Those of [`RegistryClient::manifest`].
    pub async fn digest_of(
        &self,
        repository: &Repository,
        tag: &str,
        what: &str,
        deadline: Deadline,
    ) -> Result<Option<Digest>> {
        let scope = Scope::pull(repository);
        let mut grant = self.auth.current(&scope, what, deadline).await?;
        let mut renewed = false;
        let response = loop {
            let exchange = Exchange {
                method: Method::HEAD,
                url: self.url(&format!("{repository}/manifests/{tag}")),
                what,
                headers: HeaderMap::from_iter([(
                    ACCEPT,
                    HeaderValue::from_static(ACCEPT_MANIFEST),
                )]),
                authorization: grant.as_deref().map(|grant| grant.authorization()),
                body: None,
                secret: None,
                repeatable: true,
            };
            let response = self.http.exchange(&exchange, deadline).await?;
            if response.status.as_u16() != 401 || renewed {
                break response;
            }
            renewed = true;
            let next = self
                .auth
                .renewed(&scope, grant.as_ref(), &response, what, deadline);
            grant = Some(next.await?);
        };
        match response.status.as_u16() {
            404 => Ok(None),
            200..=299 => match announced(&response) {
                Some(digest) => Ok(Some(digest)),
                // Not all registries tell.
                None => self
                    .manifest(repository, tag, what, deadline)
                    .await
                    .map(|(digest, _)| Some(digest)),
            },
            _ => Err(self.refusal(&response, what)),
        }
    }

    /// Writes a blob into `sink`: all of it, and only if it hashes to `digest`.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if the registry does not have it, [`Error::WrongBytes`] if it has other
    /// bytes, and those of [`RegistryClient::download`].
    #[expect(
        clippy::too_many_arguments,
        reason = "each is another thing, and all are needed"
    )]
    pub async fn blob(
        &self,
        lane: Lane,
        repository: &Repository,
        digest: Digest,
        limit: u64,
        what: &str,
        sink: &mut dyn Sink,
        deadline: Deadline,
    ) -> Result<()> {
        let scope = Scope::pull(repository);
        let path = format!("{repository}/blobs/{digest}");
        let ask = Ask {
            lane,
            scope: &scope,
            path: &path,
            accept: "*/*",
            what,
            limit,
        };
        let mut checked = Checked {
            sink,
            hasher: Hasher::new(),
        };
        let response = self.download(ask, &mut checked, deadline).await?;
        if !response.status.is_success() {
            return Err(self.refusal(&response, what));
        }
        if checked.hasher.finish() != digest {
            return Err(Error::WrongBytes {
                what: what.to_owned(),
                expected: digest,
                origin: response.origin,
            });
        }
        Ok(())
    }
}

/// The digest that an answer says its body has.
fn announced(response: &Response) -> Option<Digest> {
    let header = response.headers.get(CONTENT_DIGEST);
    let text = header.and_then(|value| value.to_str().ok());
    // Other algorithms are announced by registries that were asked with them, which we never do.
    text.filter(|text| text.starts_with("sha256:"))
        .and_then(|text| text.parse().ok())
}

impl Sink for Vec<u8> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.extend_from_slice(bytes);
        Ok(())
    }

    fn restart(&mut self) {
        self.clear();
    }
}

/// Hashes what passes through.
struct Checked<'a> {
    sink: &'a mut dyn Sink,
    hasher: Hasher,
}

impl Sink for Checked<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.sink.write(bytes)
    }

    fn restart(&mut self) {
        self.hasher = Hasher::new();
        self.sink.restart();
    }
}
