use axum::routing::get;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::*;

/// Bounds a failing test.
const SOON: Duration = Duration::from_secs(60);

struct Fixture {
    work: Tasks,
    servers: Servers,
    grpc: SocketAddr,
    http: SocketAddr,
}

async fn serve(http: Router) -> Fixture {
    let listeners = (
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    );
    let addresses = [&listeners.0, &listeners.1].map(|listener| listener.local_addr().unwrap());
    let tasks = Tasks::new();
    let served = Served { grpc: Routes::builder(), services: vec!["test.Service"], http };
    let servers = Servers::start(&tasks, listeners, &Health::new(), &Metrics::new(), served);
    Fixture {
        work: Tasks::new(),
        servers: servers.unwrap(),
        grpc: addresses[0],
        http: addresses[1],
    }
}

async fn connect(address: SocketAddr) -> HealthClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    HealthClient::new(endpoint.connect().await.unwrap())
}

/// A client that speaks just enough HTTP/2 to open a request and ignores everything that the server
/// sends, its GOAWAY too.
async fn deaf_client(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    // The headers of a request that never ends keep a stream open.
    let headers = [0x83, 0x86, 0x84, 0x41, 0x01, b'x'];
    stream.write_all(&[0, 0, headers.len() as u8, 0x01, 0x04, 0, 0, 0, 1]).await.unwrap();
    stream.write_all(&headers).await.unwrap();
    let mut first = [0; 9];
    stream.read_exact(&mut first).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_without_clients_end_at_once() {
    let mut fixture = serve(Router::new()).await;
    // Longer than a test may take, so that waiting for the grace fails the test.
    fixture.servers.grace = Duration::from_secs(3600);
    let mut client = connect(fixture.grpc).await;
    client.check(HealthCheckRequest { service: "test.Service".into() }).await.unwrap();
    drop(client);

    let drained = fixture.servers.drain(&fixture.work, Duration::from_secs(3600));
    let report = timeout(SOON, drained).await.expect("it waits for nobody");

    assert!(report.is_clean(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_leave_is_cut_off_after_the_grace_and_that_is_a_clean_end() {
    let (sender, held) = (tokio::sync::watch::Sender::new(false), get(std::future::pending::<()>));
    let mut fixture = serve(Router::new().route("/held", held)).await;
    fixture.servers.grace = Duration::from_secs(1);
    let mut deaf = deaf_client(fixture.grpc).await;
    let mut http = TcpStream::connect(fixture.http).await.unwrap();
    http.write_all(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    // Clients are not cut off while the process still works.
    let (shutdown, mut gone) = (fixture.work.shutdown(), sender.subscribe());
    fixture.work.spawn_once("work", async move {
        shutdown.cancelled().await;
        gone.wait_for(|gone| *gone).await?;
        Ok(())
    });
    let started = Instant::now();
    let watch = async {
        let early = timeout(Duration::from_millis(500), deaf.read_to_end(&mut Vec::new())).await;
        assert!(early.is_err(), "cut off while the process still works");
        sender.send_replace(true);
        // The server sends GOAWAY, and then the connection ends.
        let _ = timeout(SOON, deaf.read_to_end(&mut Vec::new())).await.expect("it is cut off");
        let _ = timeout(SOON, http.read_to_end(&mut Vec::new())).await.expect("it is cut off");
    };

    let (report, ()) =
        tokio::join!(fixture.servers.drain(&fixture.work, Duration::from_secs(3600)), watch);

    assert!(report.is_clean(), "{report:?}");
    let took = started.elapsed();
    assert!(took >= fixture.servers.grace, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_waits_is_urged_before_the_deadline_and_one_that_does_not_end_is_named() {
    let fixture = serve(Router::new()).await;
    let (patient, urged) =
        (fixture.work.shutdown(), std::sync::Arc::new(tokio::sync::Notify::new()));
    let told = urged.clone();
    fixture.work.spawn_once("patient", async move {
        patient.urged().await;
        told.notify_one();
        Ok(())
    });
    fixture.work.spawn_once("deaf", std::future::pending());

    let drained = fixture.servers.drain(&fixture.work, Duration::from_millis(800));
    let report = timeout(SOON, drained).await.expect("the deadline holds");

    assert!(report.still_running.contains(&"deaf".to_owned()), "{report:?}");
    timeout(SOON, urged.notified()).await.unwrap();
}
