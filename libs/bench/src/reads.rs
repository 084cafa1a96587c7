//! Measures point reads through gRPC, and the same calls to a bare tonic service.
//!
//! The bare service runs in its own process, built like the server. It answers the same method with
//! an empty response, so its figure is the cost of tonic, HTTP/2 and the loopback. The same client
//! calls the two in turn, round by round.

use std::{
    env,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use futures::{StreamExt, stream};
use headwater_proto::{
    common::v1::{Value, value::Kind},
    query::v1::{
        DescribeRequest, DescribeResponse, GetRequest, GetResponse, QueryRequest, QueryResponse,
        ScanRequest, ScanResponse, WatchRequest, WatchResponse,
        query_service_client::QueryServiceClient,
        query_service_server::{QueryService, QueryServiceServer},
    },
};
use tonic::{Request, Response, Status, transport::Channel};

use crate::{
    events,
    figures::{Better, Figure, quantile},
    ingest::connect,
    server::{Dev, free_port},
};

const ROUNDS: usize = 7;
const READS: u64 = 1_000;
const CONCURRENT: usize = 16;
/// The window that all reads ask for.
const WINDOW_MICROS: i64 = 1_577_836_860_000_000;

/// The bare service.
pub struct Echo;

type Nothing<T> = tokio_stream::Empty<Result<T, Status>>;

#[tonic::async_trait]
impl QueryService for Echo {
    async fn get(&self, _: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        Ok(Response::new(GetResponse::default()))
    }

    type ScanStream = Nothing<ScanResponse>;
    async fn scan(&self, _: Request<ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        Err(Status::unimplemented("this service only answers get"))
    }

    type QueryStream = Nothing<QueryResponse>;
    async fn query(&self, _: Request<QueryRequest>) -> Result<Response<Self::QueryStream>, Status> {
        Err(Status::unimplemented("this service only answers get"))
    }

    async fn describe(
        &self,
        _: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        Err(Status::unimplemented("this service only answers get"))
    }

    type WatchStream = Nothing<WatchResponse>;
    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("this service only answers get"))
    }
}

/// Serves the bare service until the process is killed.
pub async fn serve_echo(port: u16) -> anyhow::Result<()> {
    let address = ([127, 0, 0, 1], port).into();
    let server = tonic::transport::Server::builder().tcp_nodelay(true);
    Ok({ server }.add_service(QueryServiceServer::new(Echo)).serve(address).await?)
}

/// A process with the bare service; killed when dropped.
struct EchoProcess {
    child: Child,
    url: String,
}

impl EchoProcess {
    fn start() -> anyhow::Result<Self> {
        let port = free_port()?;
        let mut command = Command::new(env::current_exe()?);
        let child = command.args(["echo", &port.to_string()]).stdin(Stdio::null()).spawn()?;
        Ok(Self { child, url: format!("http://127.0.0.1:{port}") })
    }

    async fn connect(&self) -> anyhow::Result<Channel> {
        let started = Instant::now();
        loop {
            match connect(&self.url).await {
                Ok(channel) => return Ok(channel),
                Err(error) if started.elapsed() > Duration::from_secs(10) => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

impl Drop for EchoProcess {
    fn drop(&mut self) {
        // If the process has ended already, there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn request(read: u64) -> GetRequest {
    let key = [Kind::Integer(events::user(read * 7) as i64), Kind::TimestampMicros(WINDOW_MICROS)];
    GetRequest {
        view: "spend_per_minute".into(),
        key: key.map(|kind| Value { kind: Some(kind) }).into(),
        freshness: None,
    }
}

/// The latency of each read of a round in microseconds, and the number of reads that found a row.
async fn round(channel: &Channel, concurrent: usize) -> anyhow::Result<(Vec<f64>, usize)> {
    let calls = (0..READS).map(|read| {
        let mut client = QueryServiceClient::new(channel.clone());
        async move {
            let request = request(read);
            let started = Instant::now();
            let response = client.get(request).await?;
            anyhow::Ok((
                started.elapsed().as_nanos() as f64 / 1e3,
                response.get_ref().row.is_some(),
            ))
        }
    });
    let answers: Vec<anyhow::Result<(f64, bool)>> =
        stream::iter(calls).buffer_unordered(concurrent).collect().await;
    let answers = answers.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let found = answers.iter().filter(|(_, found)| *found).count();
    Ok((answers.into_iter().map(|(micros, _)| micros).collect(), found))
}

/// The server must have the view over the events of [`crate::ingest`].
pub async fn measure(dev: &Dev) -> anyhow::Result<Vec<Figure>> {
    let echo = EchoProcess::start()?;
    let (bare, server) = (echo.connect().await?, connect(dev.url()).await?);
    let mut figures = Vec::new();
    for concurrent in [1, CONCURRENT] {
        let (mut bare_times, mut read_times, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for index in 0..=ROUNDS {
            let (mut of_bare, _) = round(&bare, concurrent).await?;
            let (mut of_reads, found) = round(&server, concurrent).await?;
            ensure!(
                found as u64 > READS / 2,
                "only {found} of {READS} reads found a row: is the view caught up?"
            );
            if index > 0 {
                ratios.push(quantile(&mut of_reads, 0.5) / quantile(&mut of_bare, 0.5));
                bare_times.extend(of_bare);
                read_times.extend(of_reads);
            }
        }
        let micros = |what: &str, values: &mut [f64], share: f64| {
            let name = format!("{what}, {concurrent} at once, p{:.0}", share * 100.0);
            Figure::new(name, quantile(values, share), "µs", Better::Lower)
        };
        figures.push(micros("point read", &mut read_times, 0.5));
        figures.push(micros("point read", &mut read_times, 0.99));
        figures.push(micros("bare tonic", &mut bare_times, 0.5));
        let name = format!(
            "point read / bare tonic, p50, {concurrent} at once, median of {ROUNDS} rounds"
        );
        let ratio = Figure::new(name, quantile(&mut ratios, 0.5), "", Better::Lower);
        figures.push(if concurrent == 1 { ratio.must(2.0) } else { ratio });
    }
    figures.first().context("nothing was measured")?;
    Ok(figures)
}
