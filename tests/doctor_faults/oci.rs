//! OCI registries and mirrors: whether they answer, and whether they let us in.

use std::time::Duration;

use musherfs::config::{Config, Overrides, value};
use musherfs::credentials::KeyChain;
use musherfs::credentials::docker::LoginFiles;
use musherfs::doctor::{Area, Level};

use crate::support::fault_server::{FaultServer, Reply, Request};
use crate::{Machine, self_signed};

const PASSWORD: &str = "very-secret-password";

/// What stands where an OCI registry should be, and what is said of it.
fn oci(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> (Machine, FaultServer) {
    let server = FaultServer::start(answer);
    let mut machine = Machine::healthy();
    machine.probe.keys = KeyChain::default();
    machine.probe.config = Config::without_surroundings(Overrides {
        oci_registry_url: Some(server.url().parse().unwrap()),
        ..Overrides::default()
    })
    .unwrap();
    (machine, server)
}

/// Notes a login for the registry, as `docker login` does.
fn log_in(machine: &mut Machine, server: &FaultServer) {
    let host = server.url().replace("http://", "");
    let login = base64(&format!("alice:{PASSWORD}"));
    machine.write(
        "home/config.json",
        &format!(r#"{{"auths": {{"{host}": {{"auth": "{login}"}}}}}}"#),
    );
    machine.probe.logins = LoginFiles::at(vec![machine.path("home/config.json")]);
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn challenge() -> Reply {
    Reply::problem(401, "unauthorized", "authentication required")
        .header("www-authenticate", "Basic realm=\"registry\"")
}

fn front_page() -> Reply {
    Reply::json(&serde_json::json!({}))
}

#[test]
fn an_oci_registry_that_takes_the_login() {
    let (mut machine, server) = oci(|request| match request.header("authorization") {
        Some(login) if *login == format!("Basic {}", base64(&format!("alice:{PASSWORD}"))) => {
            front_page()
        }
        _ => challenge(),
    });
    log_in(&mut machine, &server);
    let findings = machine.examine();
    assert!(
        findings.iter().all(|one| one.level == Level::Ok),
        "{findings:?}"
    );
    let found = findings
        .iter()
        .find(|one| one.id == "oci-registry")
        .unwrap();
    assert!(found.message.contains("takes the login"), "{found:?}");
    assert!(server.targets().iter().all(|target| target == "/v2/"));
}

#[test]
fn an_oci_registry_with_a_token_server_is_asked_for_nothing_in_particular() {
    let (mut machine, server) = oci(|request| {
        let host = request.header("host").unwrap();
        match (request.target.as_str(), request.header("authorization")) {
            ("/token?service=bundles", Some(login)) if login.starts_with("Basic ") => {
                Reply::json(&serde_json::json!({ "token": "t0ken" }))
            }
            ("/v2/", Some("Bearer t0ken")) => front_page(),
            ("/v2/", None) => Reply::problem(401, "unauthorized", "a token, please").header(
                "www-authenticate",
                &format!("Bearer realm=\"http://{host}/token\",service=\"bundles\""),
            ),
            other => Reply::problem(400, "unexpected", &format!("{other:?}")),
        }
    });
    log_in(&mut machine, &server);
    let findings = machine.examine();
    assert!(
        findings.iter().all(|one| one.level == Level::Ok),
        "{findings:?}"
    );
}

#[test]
fn an_oci_registry_that_refuses_the_login_wants_one_or_is_none() {
    let not_found = || Reply::problem(404, "not-found", "nothing here");
    let page = || Reply::bytes("text/html", "<!doctype html><title>Sign in</title>");
    type Answer = fn() -> Reply;
    let table: [(Answer, bool, Level, Area, &str); 6] = [
        (challenge, true, Level::Fail, Area::Key, "refuses the login"),
        (
            challenge,
            false,
            Level::Warn,
            Area::Machine,
            "wants a login",
        ),
        (
            || Reply::problem(403, "denied", "not for you"),
            true,
            Level::Fail,
            Area::Key,
            "refuses the login",
        ),
        (
            not_found,
            false,
            Level::Fail,
            Area::Network,
            "does not answer as an OCI registry",
        ),
        (
            page,
            false,
            Level::Fail,
            Area::Network,
            "does not answer as an OCI registry",
        ),
        (
            || Reply::problem(500, "oops", "on fire"),
            false,
            Level::Fail,
            Area::Network,
            "500",
        ),
    ];
    for (answer, with_login, level, area, part) in table {
        let (mut machine, server) = oci(move |_| answer());
        if with_login {
            log_in(&mut machine, &server);
        }
        let found = machine.has_only("oci-registry", level, part);
        assert_eq!(found.area, area, "{found:?}");
        assert!(!format!("{found:?}").contains(PASSWORD));
        assert!(found.remedy.is_some());
    }
}

#[test]
fn an_oci_registry_that_is_gone_untrusted_or_hangs() {
    let (machine, server) = oci(|_| front_page());
    drop(server);
    let findings = machine.examine();
    let bad: Vec<_> = findings
        .iter()
        .filter(|one| one.level > Level::Info)
        .collect();
    assert!(bad.iter().all(|one| one.area == Area::Network), "{bad:?}");
    assert!(bad.iter().any(|one| one.id == "oci-registry"), "{bad:?}");

    let server = FaultServer::start_tls(self_signed(), |_| Reply::hang());
    let mut machine = Machine::healthy();
    machine.probe.config = Config::without_surroundings(Overrides {
        oci_registry_url: Some(server.url().parse().unwrap()),
        ..Overrides::default()
    })
    .unwrap();
    let found = machine.has_only("tls", Level::Fail, "not trusted");
    assert!(found.remedy.unwrap().contains("--ca-file"));

    let (mut machine, _server) = oci(|_| Reply::hang());
    machine.probe.patience = Duration::from_millis(200);
    let found = machine.has_only("oci-registry", Level::Fail, "did not answer within");
    assert_eq!(found.area, Area::Time);
}

#[test]
fn a_mirror_that_is_not_well_is_a_warning() {
    for (mirror_of, answer) in [
        (
            "oci",
            (|| Reply::problem(500, "oops", "on fire")) as fn() -> Reply,
        ),
        ("api", || Reply::problem(404, "not-found", "nothing here")),
    ] {
        let mirror = FaultServer::start(move |_| answer());
        let mut machine = Machine::healthy();
        let origin = FaultServer::start(|_| front_page());
        machine.probe.config = Config::without_surroundings(Overrides {
            api_url: (mirror_of == "api").then(|| machine.registry.url().parse().unwrap()),
            oci_registry_url: (mirror_of == "oci").then(|| origin.url().parse().unwrap()),
            mirrors: vec![value::mirror(&format!("{mirror_of}={}", mirror.url())).unwrap()],
            ..Overrides::default()
        })
        .unwrap();
        let findings = machine.examine();
        let bad: Vec<_> = findings
            .iter()
            .filter(|one| one.level > Level::Info)
            .collect();
        let [found] = bad.as_slice() else {
            panic!("{bad:?}")
        };
        assert_eq!(found.level, Level::Warn);
        assert!(found.message.starts_with("of a mirror: "), "{found:?}");
        // A mirror is shown no key.
        assert!(
            mirror
                .requests()
                .iter()
                .all(|request| request.header("authorization").is_none())
        );
    }
}
