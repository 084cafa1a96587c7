use std::time::Instant;
use headwater_integration_tests::{dev::Dev, flights, views};
use headwater_proto::{common::v1::{Value, value::Kind}, ingest::v1::AppendRequest, query::v1::*};
use headwater_proto::query::v1::query_service_server::{QueryService, QueryServiceServer};
use headwater_proto::query::v1::query_service_client::QueryServiceClient;
use tonic::{Request, Response, Status};
struct Echo(GetResponse);
type S<T> = std::pin::Pin<Box<dyn futures::Stream<Item = Result<T, Status>> + Send>>;
#[tonic::async_trait]
impl QueryService for Echo {
    async fn get(&self, _: Request<GetRequest>) -> Result<Response<GetResponse>, Status> { Ok(Response::new(self.0.clone())) }
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> { Err(Status::unimplemented("")) }
    type ScanStream = S<ScanResponse>;
    async fn scan(&self, _: Request<ScanRequest>) -> Result<Response<Self::ScanStream>, Status> { Err(Status::unimplemented("")) }
    type QueryStream = S<QueryResponse>;
    async fn query(&self, _: Request<QueryRequest>) -> Result<Response<Self::QueryStream>, Status> { Err(Status::unimplemented("")) }
    type WatchStream = S<WatchResponse>;
    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> { Err(Status::unimplemented("")) }
}
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scratch() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data")).await.unwrap();
    let [s, v] = ["stream.sql", "punctuality_v1.sql"].map(|n| flights::definition(n).unwrap());
    dev.apply("x", &[&s, &v]).await.unwrap();
    let f = flights::read().unwrap();
    let mut token = String::new();
    for b in f.chunks(1000) {
        let r = AppendRequest { stream: "flights".into(), events: b.iter().map(|f| f.json.clone().into()).collect() };
        token = dev.ingest().append(r).await.unwrap().into_inner().token;
    }
    let a = views::punctuality(&dev, views::after(&[token])).await.unwrap();
    let keys: Vec<_> = a.rows.keys().cloned().collect();
    let req = |i: usize| { let (o, w) = &keys[i * 7919 % keys.len()]; GetRequest { view: "punctuality".into(), key: vec![Value { kind: Some(Kind::Text(o.clone())) }, Value { kind: Some(Kind::TimestampMicros(*w)) }], freshness: None } };
    let mut q = dev.query();
    let first = q.get(req(0)).await.unwrap().into_inner();
    println!("{first:?}");
    let l = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = l.local_addr().unwrap();
    let server = tonic::transport::Server::builder().tcp_nodelay(true).add_service(QueryServiceServer::new(Echo(first))).serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(l));
    let h = tokio::runtime::Handle::current();
    h.spawn(server);
    let mut e = QueryServiceClient::connect(format!("http://{addr}")).await.unwrap();
    for round in 0..4 {
        for (name, c) in [("echo", &mut e), ("get", &mut q)] {
            let mut t: Vec<u128> = Vec::new();
            for i in 0..4000 { let r = req(i); let b = Instant::now(); c.get(r).await.unwrap(); t.push(b.elapsed().as_micros()); }
            t.sort();
            println!("{round} {name} p50 {} p90 {} p99 {} max {}", t[2000], t[3600], t[3960], t[3999]);
        }
    }
    // SQL cost
    for sql in ["SELECT origin, departures FROM punctuality WHERE origin='JFK' LIMIT 1", "SELECT origin, sum(departures) FROM punctuality GROUP BY origin"] {
        let mut t: Vec<u128> = Vec::new();
        for _ in 0..50 { let b = Instant::now(); views::sql(&dev, sql, Freshness::default()).await.unwrap(); t.push(b.elapsed().as_micros()); }
        t.sort(); println!("sql p50 {} max {}", t[25], t[49]);
    }
}
