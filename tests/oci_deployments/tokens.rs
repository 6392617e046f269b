//! A token server for Debian's docker-registry: it signs what it is asked for.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, KeyPair, SigningKey as _};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::fault_server::{FaultServer, Reply, Request};

/// Issues tokens to whoever has the right login, or to nobody.
pub struct TokenServer {
    server: FaultServer,
    dir: TempDir,
    issued: Arc<Mutex<Vec<String>>>,
}

impl TokenServer {
    /// `login` is the Authorization header that is wanted.
    pub fn start(login: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["tokens.test".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        fs::write(dir.path().join("tokens.pem"), certificate.pem()).unwrap();
        let chain = STANDARD.encode(certificate.der());
        let issued: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = Arc::clone(&issued);
        let server = FaultServer::start(move |request| {
            if request.header("authorization") != Some(login) {
                return Reply::status(401);
            }
            let scopes = scopes(request);
            log.lock().unwrap().extend(scopes.iter().cloned());
            let token = sign(&key, &chain, &scopes);
            Reply::json(&json!({"token": token, "expires_in": 300}))
        });
        Self {
            server,
            dir,
            issued,
        }
    }

    /// What a docker-registry that trusts this server has in its configuration.
    pub fn config(&self) -> String {
        format!(
            "auth: {{token: {{realm: \"{}/token\", service: registry.test, issuer: tokens.test, \
             rootcertbundle: {}}}}}\n",
            self.server.url(),
            self.certificate().display()
        )
    }

    fn certificate(&self) -> std::path::PathBuf {
        Path::new(self.dir.path()).join("tokens.pem")
    }

    /// The scopes of all tokens so far.
    pub fn issued(&self) -> Vec<String> {
        self.issued.lock().unwrap().clone()
    }
}

fn scopes(request: &Request) -> Vec<String> {
    let query = request.target.split_once('?').map_or("", |(_, q)| q);
    url::form_urlencoded::parse(query.as_bytes())
        .filter(|(name, _)| name == "scope")
        .map(|(_, value)| value.into_owned())
        .collect()
}

fn sign(key: &KeyPair, chain: &str, scopes: &[String]) -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let access: Vec<Value> = scopes
        .iter()
        .filter_map(|scope| {
            let (kind, rest) = scope.split_once(':')?;
            let (name, actions) = rest.rsplit_once(':')?;
            let actions: Vec<_> = actions.split(',').collect();
            Some(json!({"type": kind, "name": name, "actions": actions}))
        })
        .collect();
    let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [chain]});
    let claims = json!({"iss": "tokens.test", "sub": "ada", "aud": "registry.test",
        "exp": now + 300, "nbf": now - 30, "iat": now, "jti": "1", "access": access});
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(&header), part(&claims));
    let signature = key.sign(message.as_bytes()).unwrap();
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(raw(&signature)))
}

/// The two numbers of a DER signature, 32 bytes each, as tokens have them.
fn raw(der: &[u8]) -> Vec<u8> {
    let number = |at: usize| {
        let len = usize::from(der[at + 1]);
        let bytes = &der[at + 2..at + 2 + len];
        let digits = &bytes[bytes.len().saturating_sub(32)..];
        let mut fixed = vec![0; 32 - digits.len()];
        fixed.extend_from_slice(digits);
        (fixed, at + 2 + len)
    };
    let (r, next) = number(2);
    let (s, _) = number(next);
    [r, s].concat()
}
