//! Getting let in: the token flow of OCI registries.
//!
//! ```text
//! GET /v2/…            ──► 401, WWW-Authenticate: Bearer realm="https://auth/token",service=…,scope=…
//! GET auth/token?…     ──► {"token": "…", "expires_in": 300}      with our login, or as nobody
//! GET /v2/…  + token   ──► 200
//! ```
//!
//! - What a registry wants is learnt from its first refusal and used from then on: later requests
//!   carry a token from the start, a new one is fetched before the old one ends.
//! - Many requests that need a token at the same time fetch one. A token that is refused is replaced
//!   once, with the login looked up anew, and the request sent again: a rotated password or a token
//!   that ended early is nobody's error.
//! - The login goes to the registry (`Basic`) or to the token server that the registry names, over
//!   TLS, or on loopback if the registry is there itself; to no mirror and along with no redirect.
//!
//! The `oci-client` crate has such a flow too, but around an HTTP client of its own, which cannot be
//! given this program's: its deadlines, its certificates, its rules for redirects and for plain HTTP
//! and its limits on bodies would not hold. So the flow is here, on top of [`HttpClient`], and the
//! crate is not used.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;
use tokio::time::Instant;
use tracing::{debug, info};
use url::Url;

use super::challenge::{Challenge, parse_challenges};
use super::reference::{Endpoint, Repository};
use crate::config::value::is_here;
use crate::credentials::docker::{Login, LoginChain};
use crate::error::{Error, Result};
use crate::single_flight::SingleFlight;
use crate::source::Deadline;
use crate::source::http::{Authorization, Exchange, HttpClient, Lane, Request, Response};
use crate::sync::lock;

/// How long a login is used without looking for another one, as long as it is taken.
const LOGIN_LIFE: Duration = Duration::from_secs(60);
/// How long a refusal answers the others who ask for the same: a storm is one question.
const DENIAL_LIFE: Duration = Duration::from_secs(1);
/// How long a token lasts whose server does not say, as the specification has it.
const TOKEN_LIFE: u64 = 60;
/// How long one login or token may take, whoever waits for it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most tokens that are remembered; beyond that all are forgotten.
const MOST_GRANTS: usize = 4096;

/// What a request is allowed to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scope(String);

impl Scope {
    /// Reading a repository.
    pub fn pull(repository: &Repository) -> Self {
        Self(format!("repository:{repository}:pull"))
    }

    /// Reading and writing a repository.
    pub fn push(repository: &Repository) -> Self {
        Self(format!("repository:{repository}:pull,push"))
    }

    /// Nothing in particular: only to be known to the registry.
    pub fn none() -> Self {
        Self(String::new())
    }

    /// The list of all repositories.
    pub fn catalog() -> Self {
        Self("registry:catalog:*".to_owned())
    }

    /// Both: to mount a blob of another repository, say.
    pub fn and(self, other: &Self) -> Self {
        Self(format!("{} {}", self.0, other.0))
    }

    fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split(' ').filter(|part| !part.is_empty())
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What lets a request in. Never printed.
pub struct Grant {
    authorization: Authorization,
    /// When to fetch the next one; `None` for a login that is sent itself.
    ends: Option<Instant>,
}

impl Grant {
    /// What the request carries.
    pub fn authorization(&self) -> &Authorization {
        &self.authorization
    }

    fn is_usable(&self) -> bool {
        self.ends.is_none_or(|ends| Instant::now() < ends)
    }
}

/// What the registry wants.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Scheme {
    Basic,
    Bearer { realm: Url, service: Option<String> },
}

#[derive(Default)]
struct Known {
    scheme: Option<Scheme>,
    grants: HashMap<Scope, Arc<Grant>>,
    denied: HashMap<Scope, (Instant, Error)>,
    login: Option<(Instant, Option<Login>)>,
}

struct Inner {
    http: HttpClient,
    endpoint: Endpoint,
    logins: LoginChain,
    known: Mutex<Known>,
}

/// Gets requests to one registry let in; shared by all of them.
pub struct Authenticator {
    inner: Arc<Inner>,
    flights: SingleFlight<Scope, Result<Arc<Grant>>>,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Authenticator")
            .field(&self.inner.endpoint)
            .finish()
    }
}

impl Authenticator {
    /// For the registry at `endpoint`, with the login that `logins` finds. Nothing is asked yet.
    pub fn new(http: HttpClient, endpoint: Endpoint, logins: LoginChain) -> Self {
        Self {
            inner: Arc::new(Inner {
                http,
                endpoint,
                logins,
                known: Mutex::default(),
            }),
            flights: SingleFlight::default(),
        }
    }

    /// What a request for `scope` should carry; `None` as long as the registry wants nothing.
    ///
    /// # Errors
    ///
    /// Those of [`Authenticator::renewed`].
    pub async fn current(
        &self,
        scope: &Scope,
        what: &str,
        deadline: Deadline,
    ) -> Result<Option<Arc<Grant>>> {
        {
            let known = self.inner.lock();
            if known.scheme.is_none() {
                return Ok(None);
            }
            if let Some(grant) = known.grants.get(scope).filter(|grant| grant.is_usable()) {
                return Ok(Some(Arc::clone(grant)));
            }
        }
        self.fetch(scope, None, what, deadline).await.map(Some)
    }

    /// What to carry instead of `used`, which `refusal` (a 401) refused.
    ///
    /// Whoever is refused with it as well is [`denied`](Self::denied).
    ///
    /// # Errors
    ///
    /// [`Error::Denied`] if there is nothing else to show, and why the token server could not be
    /// asked.
    pub async fn renewed(
        &self,
        scope: &Scope,
        used: Option<&Arc<Grant>>,
        refusal: &Response,
        what: &str,
        deadline: Deadline,
    ) -> Result<Arc<Grant>> {
        let challenges = refusal.headers.get_all(WWW_AUTHENTICATE);
        let scheme = challenges
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(parse_challenges)
            .filter_map(|challenge| self.inner.scheme(challenge))
            // Better a token than the login itself.
            .max_by_key(|scheme| matches!(scheme, Scheme::Bearer { .. }));
        let Some(scheme) = scheme else {
            return Err(self.denied(refusal, what));
        };
        self.inner.lock().scheme = Some(scheme);
        self.fetch(scope, used, what, deadline).await
    }

    /// The error for a refusal that nothing can be done about: says what the user can do.
    pub fn denied(&self, refusal: &Response, what: &str) -> Error {
        self.inner.with_remedy(refusal.error(what))
    }

    /// Fetches a grant that is not `used`, once for all who ask at the same time.
    async fn fetch(
        &self,
        scope: &Scope,
        used: Option<&Arc<Grant>>,
        what: &str,
        deadline: Deadline,
    ) -> Result<Arc<Grant>> {
        if let Some(known) = self.inner.other_than(scope, used) {
            return known;
        }
        let start = || {
            let (inner, scope, used) = (Arc::clone(&self.inner), scope.clone(), used.cloned());
            async move { inner.fetch(&scope, used.as_ref()).await }
        };
        let flight = async {
            let landed = self.flights.run(scope.clone(), start).await;
            landed.map_err(|lost| Error::Internal(lost.to_string()))?
        };
        let refused = deadline.run(what, flight).await;
        // The flight was about its scope; its callers want their own thing.
        refused.map_err(|error| match error {
            Error::Denied { reason, .. } => Error::Denied {
                what: what.to_owned(),
                reason,
            },
            other => other,
        })
    }
}

impl Inner {
    /// The maps are consistent after every statement, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    /// What somebody else has found out meanwhile.
    fn other_than(&self, scope: &Scope, used: Option<&Arc<Grant>>) -> Option<Result<Arc<Grant>>> {
        let known = self.lock();
        if let Some(grant) = known.grants.get(scope)
            && grant.is_usable()
            && used.is_none_or(|used| !Arc::ptr_eq(used, grant))
        {
            return Some(Ok(Arc::clone(grant)));
        }
        let (at, error) = known.denied.get(scope)?;
        (at.elapsed() < DENIAL_LIFE).then(|| Err(error.clone()))
    }

    /// The scheme of a challenge, if it may be answered.
    fn scheme(&self, challenge: Challenge) -> Option<Scheme> {
        match challenge.scheme.as_str() {
            "basic" => Some(Scheme::Basic),
            "bearer" => {
                let realm = challenge.get("realm")?.parse::<Url>().ok()?;
                if let Err(reason) = self.may_ask(&realm) {
                    info!(registry = %self.endpoint, reason, "not asking for a token where the registry says");
                    return None;
                }
                Some(Scheme::Bearer {
                    realm,
                    service: challenge.get("service").map(str::to_owned),
                })
            }
            _ => None,
        }
    }

    /// Whether the login may go to the token server at `realm`.
    fn may_ask(&self, realm: &Url) -> Result<(), &'static str> {
        if !realm.username().is_empty() || realm.password().is_some() {
            return Err("its address has credentials");
        }
        if self.http.check(realm).is_err() {
            return Err("it is neither https nor on this machine");
        }
        if realm.scheme() == "http" && self.endpoint.origin().scheme() == "https" {
            return Err("the registry is https and it is not");
        }
        if is_here(realm) && !self.endpoint.is_here() {
            return Err("it is on this machine and the registry is not");
        }
        Ok(())
    }

    async fn fetch(&self, scope: &Scope, used: Option<&Arc<Grant>>) -> Result<Arc<Grant>> {
        // Landed between the caller's look and the start of this flight.
        if let Some(known) = self.other_than(scope, used) {
            return known;
        }
        let deadline = Deadline::after(PATIENCE);
        let what = format!("a token for {scope} of {}", self.endpoint);
        let work = async {
            let (login, fresh) = self.login(used.is_some()).await?;
            let first = self.grant(scope, login.as_ref(), &what, deadline).await;
            match first {
                // The login may have changed since it was looked up.
                Err(Error::Denied { .. }) if !fresh => {
                    let (again, _) = self.login(true).await?;
                    if again == login {
                        return first;
                    }
                    self.grant(scope, again.as_ref(), &what, deadline).await
                }
                answer => answer,
            }
        };
        let answer = deadline
            .run(&what, work)
            .await
            .map_err(|e| self.with_remedy(e));
        let mut known = self.lock();
        match &answer {
            Ok(grant) => {
                if known.grants.len() >= MOST_GRANTS {
                    known.grants.clear();
                }
                known.denied.remove(scope);
                known.grants.insert(scope.clone(), Arc::clone(grant));
            }
            Err(error @ Error::Denied { .. }) => {
                if known.denied.len() >= MOST_GRANTS {
                    known.denied.clear();
                }
                known.grants.remove(scope);
                known
                    .denied
                    .insert(scope.clone(), (Instant::now(), error.clone()));
            }
            Err(_) => {}
        }
        answer
    }

    /// The login, and whether it was looked up just now.
    async fn login(&self, anew: bool) -> Result<(Option<Login>, bool)> {
        if !anew
            && let Some((at, login)) = &self.lock().login
            && at.elapsed() < LOGIN_LIFE
        {
            return Ok((login.clone(), false));
        }
        let chain = self.logins.clone();
        let login = tokio::task::spawn_blocking(move || chain.lookup())
            .await
            .map_err(|_| Error::Internal("looking for the login failed".into()))??;
        let mut known = self.lock();
        if let Some((_, old)) = &known.login
            && *old != login
        {
            info!(registry = %self.endpoint, "there is another login than before");
        }
        known.login = Some((Instant::now(), login.clone()));
        Ok((login, true))
    }

    async fn grant(
        &self,
        scope: &Scope,
        login: Option<&Login>,
        what: &str,
        deadline: Deadline,
    ) -> Result<Arc<Grant>> {
        let scheme = self.lock().scheme.clone();
        match (scheme, login) {
            (Some(Scheme::Bearer { realm, service }), login) => {
                let asked = Asked {
                    realm,
                    service,
                    scope,
                };
                self.token(asked, login, what, deadline).await
            }
            (_, Some(Login::Password { user, password })) => Ok(Arc::new(Grant {
                authorization: Authorization::basic(user, password)?,
                ends: None,
            })),
            (_, Some(Login::IdentityToken(_))) => Err(Error::Denied {
                what: what.to_owned(),
                reason: "the registry wants a password, and the login is a token".into(),
            }),
            (_, None) => Err(Error::Denied {
                what: what.to_owned(),
                reason: "the registry wants a login".into(),
            }),
        }
    }

    async fn token(
        &self,
        asked: Asked<'_>,
        login: Option<&Login>,
        what: &str,
        deadline: Deadline,
    ) -> Result<Arc<Grant>> {
        let response = match login {
            Some(Login::IdentityToken(token)) => {
                let headers = HeaderMap::from_iter([
                    (ACCEPT, HeaderValue::from_static("application/json")),
                    (
                        CONTENT_TYPE,
                        HeaderValue::from_static("application/x-www-form-urlencoded"),
                    ),
                ]);
                let exchange = Exchange {
                    method: Method::POST,
                    url: asked.realm.clone(),
                    what,
                    headers,
                    authorization: None,
                    body: Some(asked.form(token)),
                    secret: Some(token),
                    repeatable: true,
                };
                self.http.exchange(&exchange, deadline).await?
            }
            other => {
                let basic = match other {
                    Some(Login::Password { user, password }) => {
                        Some(Authorization::basic(user, password)?)
                    }
                    _ => None,
                };
                let request = Request {
                    lane: Lane::Names,
                    url: asked.url(),
                    what,
                    accept: "application/json",
                    authorization: basic.as_ref(),
                    limit: 64 << 10,
                };
                self.http.get(&request, deadline).await?
            }
        };
        if !response.status.is_success() {
            // A token server that says no in another way than 401 still says no.
            let reason = match response.error(what) {
                Error::Rejected { reason, .. } => reason,
                error => return Err(error),
            };
            return Err(Error::Denied {
                what: what.to_owned(),
                reason,
            });
        }
        // Without the body in the error: a token may be in it.
        let token: Token = response
            .json(what)
            .map_err(|_| response.malformed(what, "the answer has no token"))?;
        let text = token.token.or(token.access_token).unwrap_or_default();
        if text.is_empty() {
            return Err(response.malformed(what, "the answer has no token"));
        }
        let life = token.expires_in.unwrap_or(TOKEN_LIFE).clamp(1, 86_400);
        debug!(%what, life, "got a token");
        Ok(Arc::new(Grant {
            authorization: Authorization::bearer(&text)
                .map_err(|_| response.malformed(what, "the token cannot be sent"))?,
            // Clocks differ and requests take time.
            ends: Some(Instant::now() + Duration::from_secs(life).mul_f64(0.8)),
        }))
    }

    /// Adds to a refusal what the user can do about it.
    fn with_remedy(&self, error: Error) -> Error {
        let Error::Denied { what, reason } = error else {
            return error;
        };
        const REMEDY: &str = "`docker login ";
        if reason.contains(REMEDY) {
            return Error::Denied { what, reason };
        }
        let known = self.lock();
        let somebody = matches!(&known.login, Some((_, Some(_))));
        let host = self.endpoint.host();
        let reason = if somebody {
            format!("{reason}; the login in use may not do that, try {REMEDY}{host}` again")
        } else {
            format!("{reason}; there is no login for it, try {REMEDY}{host}`")
        };
        Error::Denied { what, reason }
    }
}

/// What a token server is asked.
struct Asked<'a> {
    realm: Url,
    service: Option<String>,
    scope: &'a Scope,
}

impl Asked<'_> {
    fn url(&self) -> Url {
        let mut url = self.realm.clone();
        url.set_fragment(None);
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &self.service {
                query.append_pair("service", service);
            }
            for scope in self.scope.parts() {
                query.append_pair("scope", scope);
            }
        }
        url
    }

    fn form(&self, token: &str) -> Bytes {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token")
            .append_pair("client_id", "musherfs")
            .append_pair("scope", &self.scope.0)
            .append_pair("refresh_token", token);
        if let Some(service) = &self.service {
            form.append_pair("service", service);
        }
        form.finish().into()
    }
}

/// What a token server answers.
#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authenticator(registry: &str) -> Authenticator {
        let http = HttpClient::new(&crate::source::http::HttpSettings::default()).unwrap();
        Authenticator::new(http, registry.parse().unwrap(), LoginChain::default())
    }

    #[test]
    fn a_login_goes_only_where_it_is_safe() {
        for (registry, realm, may) in [
            ("https://r.example", "https://auth.example/token", true),
            ("https://r.example", "http://auth.example/token", false),
            ("https://r.example", "http://127.0.0.1/token", false),
            ("https://r.example", "https://localhost/token", false),
            ("https://r.example", "https://u:p@auth.example/", false),
            ("https://r.example", "ftp://auth.example/", false),
            ("http://127.0.0.1:1", "http://127.0.0.1:2/token", true),
            ("http://127.0.0.1:1", "https://auth.example/token", true),
            ("http://127.0.0.1:1", "http://auth.example/token", false),
        ] {
            let asked = authenticator(registry)
                .inner
                .may_ask(&realm.parse().unwrap());
            assert_eq!(asked.is_ok(), may, "{registry} {realm}: {asked:?}");
        }
    }
}
