//! The HTTP client against servers that misbehave.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use musherfs::error::{Error, Result};
use musherfs::metrics::{Counter, Metrics};
use musherfs::source::http::{
    Authorization, Exchange, HttpClient, HttpSettings, Lane, MAX_ANSWER, MAX_IN_FLIGHT, Request,
    Response, Timing,
};
use musherfs::source::{Deadline, Sink};
use support::fault_server::{FaultServer, Reply};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

/// Retries without pauses; everything else as usual.
fn hasty() -> Timing {
    Timing {
        backoff: Duration::from_millis(1),
        backoff_cap: Duration::from_millis(5),
        ..Timing::default()
    }
}

fn client(timing: Timing) -> HttpClient {
    HttpClient::with_timing(&HttpSettings::default(), timing).unwrap()
}

fn request(url: &str) -> Request<'static> {
    Request {
        lane: Lane::Content,
        url: url.parse().unwrap(),
        what: "the thing",
        accept: "application/json",
        authorization: None,
        limit: MAX_ANSWER,
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

async fn get(server: &FaultServer) -> Result<Response> {
    client(hasty()).get(&request(&server.url()), soon()).await
}

fn unreachable(result: Result<Response>) -> String {
    match result {
        Err(Error::Unreachable { reason, .. }) => reason,
        Ok(response) => match response.error("x") {
            Error::Unreachable { reason, .. } => reason,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn malformed(result: Result<Response>) -> String {
    match result {
        Err(Error::Malformed { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

fn gzip(size: usize) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let block = vec![b' '; 1 << 20];
    for _ in 0..size >> 20 {
        encoder.write_all(&block).unwrap();
    }
    encoder.finish().unwrap()
}

#[tokio::test]
async fn a_request_says_who_asks_and_for_what() {
    let server = FaultServer::script([Reply::status(503), Reply::status(200)]);
    get(&server).await.unwrap();
    let requests = server.requests();
    for request in &requests {
        let agent = concat!("musherfs/", env!("CARGO_PKG_VERSION"));
        assert_eq!(request.header("user-agent"), Some(agent));
        assert_eq!(request.header("accept"), Some("application/json"));
        assert_eq!(request.header("content-type"), None);
        assert_eq!(request.header("authorization"), None);
    }
    let id = |n: usize| requests[n].header("x-request-id").unwrap().to_owned();
    assert_eq!(id(0).len(), 36);
    assert_ne!(id(0), id(1), "every attempt has an id of its own");
}

#[tokio::test]
async fn statuses_that_may_pass_are_tried_four_times_and_counted() {
    for status in [408, 429, 500, 502, 503, 504] {
        let server = FaultServer::script([Reply::problem(status, "busy", "come back later")]);
        let metrics = Arc::new(Metrics::default());
        let settings = HttpSettings {
            metrics: Arc::clone(&metrics),
            ..HttpSettings::default()
        };
        let client = HttpClient::with_timing(&settings, hasty()).unwrap();
        let reason = unreachable(client.get(&request(&server.url()), soon()).await);
        assert!(reason.contains("come back later"), "{reason}");
        assert!(reason.contains("4 attempts"), "{reason}");
        assert_eq!(server.requests().len(), 4, "{status}");
        assert_eq!(metrics.get(Counter::SourceRequests), 4);
    }
}

#[tokio::test]
async fn a_storm_that_passes_is_survived() {
    let server = FaultServer::script([
        Reply::status(500),
        Reply::reset(),
        Reply::status(503),
        Reply::bytes("application/json", "{}"),
    ]);
    let response = get(&server).await.unwrap();
    assert_eq!(&response.body[..], b"{}");
}

#[tokio::test]
async fn other_statuses_are_answers_at_once() {
    for (status, kind) in [
        (400, "Rejected"),
        (401, "Denied"),
        (403, "Denied"),
        (404, "NotFound"),
        (405, "Rejected"),
        (410, "NotFound"),
        (422, "Rejected"),
        (304, "Malformed"),
        (501, "Unreachable"),
    ] {
        let server = FaultServer::script([Reply::problem(status, "refused", "because")]);
        let error = get(&server).await.unwrap().error("the thing");
        assert!(
            format!("{error:?}").starts_with(kind),
            "{status}: {error:?}"
        );
        assert_eq!(server.requests().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn retry_after_in_seconds_is_waited_for() {
    let server = FaultServer::script([
        Reply::status(429).header("retry-after", "1"),
        Reply::status(200),
    ]);
    let started = Instant::now();
    assert_eq!(get(&server).await.unwrap().status, 200);
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn retry_after_as_a_date_is_waited_for() {
    let date = SystemTime::now() + Duration::from_secs(3);
    let date = httpdate::fmt_http_date(date);
    let server = FaultServer::script([
        Reply::status(503).header("retry-after", &date),
        Reply::status(200),
    ]);
    assert_eq!(get(&server).await.unwrap().status, 200);
    let date = httpdate::parse_http_date(&date).unwrap();
    assert!(SystemTime::now() >= date, "asked again before the date");
}

#[tokio::test]
async fn a_retry_after_beyond_the_deadline_ends_the_request_at_once() {
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(7200));
    for wait in ["3600", &date, "18446744073709551615"] {
        let server = FaultServer::script([Reply::status(429).header("retry-after", wait)]);
        let reason = unreachable(get(&server).await);
        assert!(reason.contains("it asks to wait"), "{reason}");
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_truncated_body_is_fetched_again() {
    let whole = Reply::bytes("application/json", vec![b' '; 10_000]);
    let server = FaultServer::script([whole.clone().truncated(5000), whole.clone()]);
    assert_eq!(get(&server).await.unwrap().body.len(), 10_000);

    let server = FaultServer::script([whole.truncated(5000)]);
    unreachable(get(&server).await);
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test]
async fn a_truncated_gzip_stream_is_fetched_again() {
    let mut cut = gzip(1 << 20);
    cut.truncate(cut.len() / 2);
    let cut = Reply::bytes("application/json", cut).header("content-encoding", "gzip");
    let whole = Reply::bytes("application/json", gzip(1 << 20)).header("content-encoding", "gzip");
    let server = FaultServer::script([cut, whole]);
    assert_eq!(get(&server).await.unwrap().body.len(), 1 << 20);
    let encodings = server.requests()[0]
        .header("accept-encoding")
        .unwrap()
        .to_owned();
    assert!(encodings.contains("gzip"), "{encodings}");
}

#[tokio::test]
async fn a_trickle_counts_as_stuck() {
    let timing = Timing {
        stall_window: Duration::from_millis(200),
        attempts: 2,
        ..hasty()
    };
    let body = Reply::bytes("application/json", vec![b' '; 10_000]);
    let server = FaultServer::script([body.trickle(1, Duration::from_millis(20))]);
    let result = client(timing).get(&request(&server.url()), soon()).await;
    let reason = unreachable(result);
    assert!(reason.contains("stopped coming"), "{reason}");
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn a_slow_body_that_goes_on_is_waited_for() {
    let timing = Timing {
        stall_window: Duration::from_secs(5),
        ..hasty()
    };
    let body = Reply::bytes("application/json", vec![b' '; 8 << 10]);
    let server = FaultServer::script([body.trickle(1 << 10, Duration::from_millis(20))]);
    let result = client(timing).get(&request(&server.url()), soon()).await;
    assert_eq!(result.unwrap().body.len(), 8 << 10);
}

#[tokio::test]
async fn a_slow_body_that_goes_on_may_take_as_long_as_the_deadline() {
    let short = Duration::from_millis(500);
    let timing = Timing {
        connect: short,
        first_byte: short,
        stall_window: short,
        ..hasty()
    };
    let body = Reply::bytes("application/json", vec![b' '; 40 << 10]);
    let server = FaultServer::script([body.trickle(2 << 10, Duration::from_millis(100))]);
    let response = client(timing).get(&request(&server.url()), soon()).await;
    assert_eq!(response.unwrap().body.len(), 40 << 10);
    assert_eq!(server.requests().len(), 1, "never from the start again");
}

#[tokio::test]
async fn a_hanging_server_releases_the_caller_at_the_deadline() {
    let server = FaultServer::script([Reply::hang()]);
    let deadline = Deadline::after(Duration::from_millis(300));
    let error = client(hasty()).get(&request(&server.url()), deadline).await;
    assert!(matches!(error, Err(Error::Timeout { .. })), "{error:?}");
    assert!(deadline.is_over());
}

#[tokio::test]
async fn after_the_deadline_nothing_is_asked() {
    let server = FaultServer::script([Reply::status(200)]);
    let past = Deadline::after(Duration::ZERO);
    let error = client(hasty()).get(&request(&server.url()), past).await;
    assert!(matches!(error, Err(Error::Timeout { .. })), "{error:?}");
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_server_that_hangs_once_is_asked_again() {
    let timing = Timing {
        first_byte: Duration::from_millis(300),
        ..hasty()
    };
    let server = FaultServer::script([Reply::hang(), Reply::status(200)]);
    let result = client(timing).get(&request(&server.url()), soon()).await;
    assert_eq!(result.unwrap().status, 200);
}

#[tokio::test]
async fn resets_refusals_and_nonsense_are_unreachable() {
    for reply in [
        Reply::reset(),
        Reply::raw("SSH-2.0-OpenSSH_9\r\n"),
        Reply::raw(""),
    ] {
        let server = FaultServer::script([reply]);
        unreachable(get(&server).await);
        assert_eq!(server.requests().len(), 4);
    }
    let server = FaultServer::script([Reply::status(200)]);
    let url = server.url();
    drop(server);
    let reason = unreachable(client(hasty()).get(&request(&url), soon()).await);
    assert!(reason.to_lowercase().contains("refused"), "{reason}");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_while_it_streams() {
    let server = FaultServer::script([Reply::endless(vec![b' '; 1 << 20])]);
    let reason = malformed(get(&server).await);
    assert!(reason.contains(&MAX_ANSWER.to_string()), "{reason}");
    assert_eq!(server.requests().len(), 1, "more of it would not help");
}

#[tokio::test]
async fn an_announced_body_over_the_limit_is_not_read() {
    let huge = (MAX_ANSWER + 1).to_string();
    // The body itself never comes: reading it would end in a timeout.
    let server = FaultServer::script([Reply::bytes("application/json", "{}")
        .header("content-length", &huge)
        .trickle(1, Duration::from_secs(60))]);
    malformed(get(&server).await);
}

#[tokio::test]
async fn a_gzip_bomb_is_defused() {
    let bomb = gzip(80 << 20);
    assert!(bomb.len() < 1 << 20);
    let server = FaultServer::script([
        Reply::bytes("application/json", bomb).header("content-encoding", "gzip")
    ]);
    malformed(get(&server).await);
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn of_a_long_refusal_only_the_start_is_read() {
    let server = FaultServer::script([Reply::endless(vec![b'x'; 1 << 10]).with_status(404)]);
    let response = get(&server).await.unwrap();
    assert_eq!(response.body.len(), 64 << 10);
}

#[tokio::test]
async fn the_key_does_not_follow_a_redirect_to_another_origin() {
    let other = FaultServer::script([Reply::bytes("application/json", "{}")]);
    let home = FaultServer::script([
        Reply::redirect("/elsewhere"),
        Reply::redirect(&format!("{}/away", other.url())),
    ]);
    let authorization = Authorization::bearer("mush_secret").unwrap();
    let mut request = request(&home.url());
    request.authorization = Some(&authorization);
    let response = client(hasty()).get(&request, soon()).await.unwrap();
    assert_eq!(response.origin, other.url());
    let keys: Vec<_> = home
        .requests()
        .iter()
        .map(|r| r.key().map(str::to_owned))
        .collect();
    let key = Some("mush_secret".to_owned());
    assert_eq!(keys, [key.clone(), key], "the same origin keeps it");
    assert_eq!(other.targets(), ["/away"]);
    assert_eq!(other.requests()[0].header("authorization"), None);
}

#[tokio::test]
async fn redirect_loops_end() {
    let server = FaultServer::script([Reply::redirect("/again")]);
    let reason = malformed(get(&server).await);
    assert!(reason.contains("redirects"), "{reason}");
    assert_eq!(server.requests().len(), 6);
}

#[tokio::test]
async fn redirects_to_where_nothing_good_can_be_are_refused() {
    for location in [
        "http://example.com/",
        "file:///etc/passwd",
        "http://user:password@127.0.0.1/",
        "http://[",
    ] {
        let server = FaultServer::script([Reply::redirect(location)]);
        let reason = malformed(get(&server).await);
        assert!(!reason.contains("password@"), "{reason}");
        assert_eq!(server.requests().len(), 1, "{location}");
    }
}

#[tokio::test]
async fn plain_http_to_another_machine_is_a_configuration_error() {
    let error = client(hasty())
        .get(&request("http://192.0.2.1/"), soon())
        .await;
    assert!(matches!(error, Err(Error::Config(_))), "{error:?}");
}

#[tokio::test]
async fn a_server_that_echoes_the_key_does_not_get_it_into_errors() {
    let echo = "your key mush_secret is not valid";
    let server = FaultServer::script([Reply::problem(401, "credentials-invalid", echo)]);
    let authorization = Authorization::bearer("mush_secret").unwrap();
    let mut request = request(&server.url());
    request.authorization = Some(&authorization);
    let response = client(hasty()).get(&request, soon()).await.unwrap();
    let error = response.error("the thing").to_string();
    assert!(error.contains("your key … is not valid"), "{error}");
    assert!(!format!("{request:?}").contains("mush_secret"));
    assert!(matches!(
        Authorization::bearer("a\nb"),
        Err(Error::Config(_))
    ));
}

#[tokio::test]
async fn a_key_that_is_echoed_where_a_long_text_is_cut_short_leaves_no_part_of_itself() {
    for before in 185..205 {
        let echo = format!("{}mush_secret is not valid", "x".repeat(before));
        let server = FaultServer::script([Reply::problem(403, "forbidden", &echo)]);
        let authorization = Authorization::bearer("mush_secret").unwrap();
        let mut request = request(&server.url());
        request.authorization = Some(&authorization);
        let response = client(hasty()).get(&request, soon()).await.unwrap();
        let error = response.error("the thing").to_string();
        assert!(!error.contains("mu"), "{before}: {error}");
    }
}

#[tokio::test]
async fn a_login_that_is_echoed_as_it_was_sent_is_taken_out() {
    let authorization = Authorization::basic("ann", "open sesame").unwrap();
    let pair = "YW5uOm9wZW4gc2VzYW1l";
    let echo = format!("you sent Basic {pair}, which is open sesame");
    let server = FaultServer::script([Reply::problem(401, "no", &echo)]);
    let mut request = request(&server.url());
    request.authorization = Some(&authorization);
    let response = client(hasty()).get(&request, soon()).await.unwrap();
    let sent = server.requests()[0]
        .header("authorization")
        .unwrap()
        .to_owned();
    assert_eq!(sent, format!("Basic {pair}"));
    let error = response.error("the thing").to_string();
    assert!(error.contains("you sent Basic …, which is …"), "{error}");
}

#[tokio::test]
async fn half_a_secret_is_left_by_no_way_of_spelling_or_asking() {
    for before in 185..205 {
        let space = "x".repeat(before);
        let spelt = format!(r#"{{"detail":"{space}\u006dush_secret is not valid"}}"#);
        let plain = format!("{space}mush_secret is not valid");
        for echo in [
            Reply::bytes("application/problem+json", spelt),
            Reply::bytes("text/plain", plain),
        ] {
            let server = FaultServer::script([echo.with_status(403)]);
            let authorization = Authorization::bearer("mush_secret").unwrap();
            let mut request = request(&server.url());
            request.authorization = Some(&authorization);
            let asked = client(hasty()).get(&request, soon()).await.unwrap();
            let exchange = Exchange {
                method: http::Method::POST,
                url: server.url().parse().unwrap(),
                what: "the thing",
                headers: http::HeaderMap::new(),
                authorization: None,
                body: Some("grant=mush_secret".into()),
                secret: Some("mush_secret"),
                repeatable: false,
            };
            let sent = client(hasty()).exchange(&exchange, soon()).await.unwrap();
            for answer in [asked, sent] {
                let error = answer.error("the thing").to_string();
                assert!(!error.contains("mu"), "{before}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn a_list_of_tags_that_has_no_end_is_given_up() {
    use musherfs::credentials::docker::LoginChain;
    use musherfs::publish::oci::Remote;
    use musherfs::source::oci::auth::Authenticator;
    use musherfs::source::oci::reference::Endpoint;

    let page = AtomicUsize::new(0);
    let server = FaultServer::start(move |_| {
        let next = page.fetch_add(1, SeqCst);
        let tags = format!(r#"{{"tags":["{}"]}}"#, "x".repeat(8 << 20));
        let link = format!("</v2/acme/kit/tags/list?last={next}>; rel=\"next\"");
        Reply::bytes("application/json", tags).header("link", &link)
    });
    let endpoint: Endpoint = server.address().to_string().parse().unwrap();
    let http = client(hasty());
    let repository = endpoint.repository(&"acme/kit".parse().unwrap()).unwrap();
    let guard = Authenticator::new(http.clone(), endpoint.clone(), LoginChain::default());
    let remote = Remote::new(endpoint, http, Arc::new(guard), Duration::from_secs(60)).unwrap();
    let error = remote.tags(&repository).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    assert!(server.requests().len() <= 5, "{}", server.requests().len());
}

#[tokio::test]
async fn at_most_64_requests_of_a_lane_are_in_flight() {
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let server = FaultServer::start({
        let gate = Arc::clone(&gate);
        move |_| {
            let (open, opened) = &*gate;
            let open = open.lock().unwrap();
            drop(opened.wait_while(open, |open| !*open).unwrap());
            Reply::status(200)
        }
    });
    let client = client(hasty());
    let asked: Vec<_> = (0..MAX_IN_FLIGHT)
        .map(|_| {
            let (client, request) = (client.clone(), request(&server.url()));
            tokio::spawn(async move { client.get(&request, soon()).await })
        })
        .collect();
    server.wait_for(MAX_IN_FLIGHT).await;
    let late = Deadline::after(Duration::from_millis(200));
    let error = client.get(&request(&server.url()), late).await;
    assert!(
        matches!(error, Err(Error::Timeout { queued: true, .. })),
        "{error:?}"
    );
    assert_eq!(server.requests().len(), MAX_IN_FLIGHT);
    let name = Request {
        lane: Lane::Names,
        ..request(&server.url())
    };
    let late = Deadline::after(Duration::from_millis(200));
    let error = client.get(&name, late).await;
    assert!(
        matches!(error, Err(Error::Timeout { queued: false, .. })),
        "{error:?}"
    );
    assert_eq!(server.requests().len(), MAX_IN_FLIGHT + 1, "its own lane");
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    for asked in asked {
        asked.await.unwrap().unwrap();
    }
}

/// Takes no more than so many bytes.
struct Small(usize);

impl Sink for Small {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self.0.checked_sub(bytes.len()) {
            Some(left) => self.0 = left,
            None => return Err(Error::Internal("full".into())),
        }
        Ok(())
    }

    fn restart(&mut self) {}
}

#[tokio::test]
async fn a_sink_that_has_enough_ends_the_download() {
    let server = FaultServer::script([Reply::endless(vec![b' '; 1 << 10])]);
    let mut sink = Small(100_000);
    let error = client(hasty())
        .download(&request(&server.url()), &mut sink, soon())
        .await;
    assert!(matches!(error, Err(Error::Internal(_))), "{error:?}");
    assert_eq!(server.requests().len(), 1);
}

mod tls {
    use super::*;
    use crate::support::fault_server::authority;

    fn trusting(pems: &[&str]) -> HttpClient {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), pems.concat()).unwrap();
        let settings = HttpSettings {
            ca_file: Some(file.path().to_owned()),
            ..HttpSettings::default()
        };
        HttpClient::with_timing(&settings, hasty()).unwrap()
    }

    #[tokio::test]
    async fn a_private_authority_is_trusted_once_it_is_named() {
        let (ca, config) = authority();
        let (other, _) = authority();
        let server = FaultServer::start_tls(config, |_| Reply::bytes("application/json", "{}"));
        let by_name = format!("https://localhost:{}", server.address().port());
        for url in [server.url(), by_name] {
            let answer = trusting(&[&other, &ca]).get(&request(&url), soon()).await;
            assert_eq!(&answer.unwrap().body[..], b"{}");
        }
        assert_eq!(server.requests().len(), 2);
        for client in [trusting(&[&other]), client(hasty())] {
            let reason = unreachable(client.get(&request(&server.url()), soon()).await);
            assert!(reason.to_lowercase().contains("certificate"), "{reason}");
            assert!(!reason.contains("attempts"), "not worth a retry: {reason}");
        }
        assert_eq!(server.requests().len(), 2);
    }

    #[tokio::test]
    async fn a_redirect_from_https_to_plain_http_is_refused() {
        let (ca, config) = authority();
        let plain = FaultServer::script([Reply::status(200)]);
        let location = plain.url();
        let server = FaultServer::start_tls(config, move |_| Reply::redirect(&location));
        let answer = trusting(&[&ca]).get(&request(&server.url()), soon()).await;
        assert!(malformed(answer).contains("from https"));
        assert!(plain.requests().is_empty());
    }
}

/// A server that keeps its connections, and answers when `together` requests are there. How many
/// connections are open, and how many there have been.
async fn patient_server(together: usize) -> (String, watch::Receiver<(usize, usize)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (connections, seen) = watch::channel((0, 0));
    let waiting = Arc::new(Semaphore::new(0));
    tokio::spawn(async move {
        let connections = Arc::new(connections);
        let asked = Arc::new(AtomicUsize::new(0));
        while let Ok((stream, _)) = listener.accept().await {
            connections.send_modify(|(open, ever)| (*open, *ever) = (*open + 1, *ever + 1));
            let (connections, asked) = (Arc::clone(&connections), Arc::clone(&asked));
            let waiting = Arc::clone(&waiting);
            tokio::spawn(async move {
                let (reader, mut writer) = stream.into_split();
                let mut lines = tokio::io::BufReader::new(reader).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    if !line.is_empty() {
                        continue;
                    }
                    if asked.fetch_add(1, SeqCst) + 1 == together {
                        waiting.add_permits(1024);
                    }
                    let _turn = waiting.acquire().await.unwrap();
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                    if writer.write_all(answer).await.is_err() {
                        break;
                    }
                }
                connections.send_modify(|(open, _)| *open -= 1);
            });
        }
    });
    (url, seen)
}

#[tokio::test]
async fn of_the_connections_that_a_burst_opens_a_few_stay() {
    const FEW: usize = 8;
    let burst = 4 * FEW;
    let (url, mut connections) = patient_server(burst).await;
    let client = client(hasty());
    let all = (0..burst).map(|_| async { client.get(&request(&url), soon()).await.unwrap() });
    futures_util::future::join_all(all).await;
    let most = connections.borrow().1;
    assert!(most >= burst, "{most}");
    let deadline = Duration::from_secs(60);
    let few = connections.wait_for(|(open, _)| *open <= FEW);
    tokio::time::timeout(deadline, few).await.unwrap().unwrap();
    client.get(&request(&url), soon()).await.unwrap();
    assert_eq!(connections.borrow().1, most, "one that stayed is used");
}
