//! Measures appends through gRPC to the embedded log, acknowledged after fsync.

use std::time::Instant;

use anyhow::ensure;
use bytes::Bytes;
use futures::{StreamExt, stream};
use headwater_proto::ingest::v1::{
    AppendRequest, AppendResponse, ingest_service_client::IngestServiceClient,
};
use tonic::transport::{Channel, Endpoint};

use crate::{
    events,
    figures::{Better, Figure, quantile},
    server::Dev,
};

const BATCH: u64 = 1_000;
const BATCHES: u64 = 300;
const ROUNDS: u64 = 5;
/// The number of concurrent unary requests.
const CONCURRENT: usize = 16;

pub async fn connect(url: &str) -> anyhow::Result<Channel> {
    Ok(Endpoint::from_shared(url.to_owned())?.tcp_nodelay(true).connect().await?)
}

/// Batches that begin with the event `first`. They are built before the measurement and share their
/// bytes.
fn batches(first: u64, count: u64) -> Vec<AppendRequest> {
    let event = |number| Bytes::from(events::event(number));
    let batch = |batch: u64| {
        let from = first + batch * BATCH;
        AppendRequest { stream: "orders".into(), events: (from..from + BATCH).map(event).collect() }
    };
    (0..count).map(batch).collect()
}

fn check(response: &AppendResponse) -> anyhow::Result<()> {
    let refused = response.results.iter().find_map(|result| match &result.outcome {
        Some(headwater_proto::ingest::v1::append_result::Outcome::Rejected(rejected)) => {
            Some(rejected)
        }
        Some(headwater_proto::ingest::v1::append_result::Outcome::Accepted(_)) | None => None,
    });
    ensure!(response.accepted == BATCH, "{} of {BATCH} accepted: {refused:?}", response.accepted);
    Ok(())
}

/// Measures, and leaves the events in the log for the view's measurements. Returns the figures and
/// the number of events.
pub async fn measure(dev: &Dev) -> anyhow::Result<(Vec<Figure>, u64)> {
    let channel = connect(dev.url()).await?;
    let mut client = IngestServiceClient::new(channel.clone());
    let mut sent = 0;
    let (mut streamed, mut unary, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let requests = batches(sent, BATCHES);
        sent += BATCHES * BATCH;
        let started = Instant::now();
        let mut responses = client.append_stream(stream::iter(requests)).await?.into_inner();
        let mut answered = 0;
        while let Some(response) = responses.message().await? {
            check(&response)?;
            answered += 1;
        }
        ensure!(answered == BATCHES, "{answered} of {BATCHES} batches were answered");
        let rate = (BATCHES * BATCH) as f64 / started.elapsed().as_secs_f64();

        let requests = batches(sent, BATCHES);
        sent += BATCHES * BATCH;
        let started = Instant::now();
        let calls = requests.into_iter().map(|request| {
            let mut client = IngestServiceClient::new(channel.clone());
            async move {
                let started = Instant::now();
                check(client.append(request).await?.get_ref())?;
                anyhow::Ok(started.elapsed().as_secs_f64() * 1e3)
            }
        });
        let waits: Vec<anyhow::Result<f64>> =
            stream::iter(calls).buffer_unordered(CONCURRENT).collect().await;
        let elapsed = started.elapsed().as_secs_f64();
        let waits = waits.into_iter().collect::<anyhow::Result<Vec<f64>>>()?;
        // The first round, on an empty log with cold code, is not counted.
        if round > 0 {
            streamed.push(rate);
            unary.push((BATCHES * BATCH) as f64 / elapsed);
            answers.extend(waits);
        }
    }
    let rate = |name: &str, values: &mut [f64]| {
        Figure::new(name, quantile(values, 0.5), "events/s", Better::Higher)
            .must(100_000.0)
            .goal(300_000.0)
    };
    let figures = vec![
        rate("ingest: one stream of batches of 1,000, fsync", &mut streamed),
        rate("ingest: 16 concurrent unary batches of 1,000, fsync", &mut unary),
        Figure::new(
            "ingest: unary batch answered, p50",
            quantile(&mut answers, 0.5),
            "ms",
            Better::Lower,
        ),
        Figure::new(
            "ingest: unary batch answered, p99",
            quantile(&mut answers, 0.99),
            "ms",
            Better::Lower,
        ),
    ];
    Ok((figures, sent))
}
