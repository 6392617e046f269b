//! Serving and stopping.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

async fn started() -> (
    tempfile::TempDir,
    std::net::SocketAddr,
    tokio::sync::oneshot::Sender<()>,
    tokio::task::JoinHandle<io::Result<()>>,
) {
    let dir = tempfile::tempdir().unwrap();
    let storage = Arc::new(Storage::open(dir.path()).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, Registry::new(storage), async {
        let _ = stopped.await;
    }));
    (dir, address, stop, server)
}

#[tokio::test]
async fn it_answers_until_it_is_stopped() {
    let (_dir, address, stop, server) = started().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"GET /v2/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn an_unfinished_request_does_not_keep_it_from_stopping() {
    let (_dir, address, stop, server) = started().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /v2/ HT").await.unwrap();
    // The clock stands still but for the grace period: it runs on when all tasks wait.
    tokio::time::pause();
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
}
