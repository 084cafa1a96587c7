//! The two servers of a process, gRPC and HTTP, and how they shut down.
//!
//! A client may keep its connection open although the server has asked it to leave, and the server
//! would wait for it until the deadline of the whole shutdown. So the connections are cut [`GRACE`]
//! after all other work of the process has ended.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::Router;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    runtime::Handle,
    time::Instant,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{
    service::{Routes, RoutesBuilder},
    transport::server::{Connected, TcpConnectInfo},
};

use crate::{Health, Metrics, StopReport, Tasks, admin_router};

/// How long clients may take to leave after the process's other work has ended.
pub const GRACE: Duration = Duration::from_secs(5);

/// How long the servers may take to end after their connections were cut.
const AFTER_CUT: Duration = Duration::from_secs(2);

/// The share of the deadline after which tasks are asked to stop waiting for others.
const URGE_AFTER: f64 = 0.75;

/// The routes and services of a process.
pub struct Served {
    /// The gRPC services, without health and reflection.
    pub grpc: RoutesBuilder,
    /// Full names of the services, for the health service.
    pub services: Vec<&'static str>,
    /// The HTTP routes, without `/healthz`, `/readyz` and `/metrics`.
    pub http: Router,
}

/// The servers of a process while they run.
pub struct Servers {
    tasks: Tasks,
    cut: CancellationToken,
    grace: Duration,
}

impl Servers {
    /// Serves on both listeners until the shutdown of `tasks`. Adds gRPC health and reflection, and
    /// `/healthz`, `/readyz` and `/metrics`.
    ///
    /// # Errors
    ///
    /// The compiled-in descriptors are damaged.
    pub fn start(
        tasks: &Tasks,
        (grpc, http): (TcpListener, TcpListener),
        health: &Health,
        metrics: &Metrics,
        served: Served,
    ) -> anyhow::Result<Self> {
        let Served { grpc: mut routes, services, http: router } = served;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(headwater_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        routes.add_service(health.serve(tasks, &services)).add_service(reflection);

        let cut = CancellationToken::new();
        let shutdown = tasks.shutdown();
        let incoming = Listener { listener: grpc, cut: cut.clone() };
        let server = serve_grpc(routes.routes(), incoming, shutdown.cancelled_owned());
        tasks.spawn_once("grpc", async move { Ok(server.await?) });
        let router = router.merge(admin_router(health, metrics));
        let server = axum::serve(Listener { listener: http, cut: cut.clone() }, router)
            .with_graceful_shutdown(shutdown.cancelled_owned());
        tasks.spawn_once("http", async move { Ok(server.await?) });
        Ok(Self { tasks: tasks.clone(), cut, grace: GRACE })
    }

    /// Ends `work` and then the servers, by the deadline. Accepted requests are finished first;
    /// then the connections of clients that did not leave are cut.
    pub async fn drain(&self, work: &Tasks, deadline: Duration) -> StopReport {
        let started = Instant::now();
        self.tasks.shutdown().begin();
        let urge = work.shutdown();
        let urging = Handle::current().spawn(async move {
            tokio::time::sleep(deadline.mul_f64(URGE_AFTER)).await;
            urge.urge();
        });
        let mut report = work.stop(deadline).await;
        urging.abort();
        let left = deadline.saturating_sub(started.elapsed());
        // Clients may still read their last answers.
        let polite = self.tasks.wait_idle(left.min(self.grace)).await;
        if !polite {
            tracing::info!("cutting the connections of clients that did not leave");
        }
        self.cut.cancel();
        let servers = self.tasks.stop(AFTER_CUT).await;
        report.still_running.extend(servers.still_running);
        report.failure = report.failure.or(servers.failure);
        report
    }
}

async fn serve_grpc(
    routes: Routes,
    listener: Listener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let incoming = futures_stream(listener);
    tonic::transport::Server::builder()
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, shutdown)
        .await
}

fn futures_stream(
    listener: Listener,
) -> impl tokio_stream::Stream<Item = io::Result<Connection>> + Send {
    let Listener { listener, cut } = listener;
    tokio_stream::StreamExt::map(
        tokio_stream::wrappers::TcpListenerStream::new(listener),
        move |accepted| accepted.map(|stream| Connection::new(stream, &cut)),
    )
}

/// A listener whose connections can be cut.
struct Listener {
    listener: TcpListener,
    cut: CancellationToken,
}

impl axum::serve::Listener for Listener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
        (Connection::new(stream, &self.cut), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when it is cut, whatever its client does.
struct Connection {
    stream: TcpStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection {
    fn new(stream: TcpStream, cut: &CancellationToken) -> Self {
        // Small answers must not wait for more data. Where this cannot be set they only come later.
        let _ = stream.set_nodelay(true);
        Self { stream, cut: Box::pin(cut.clone().cancelled_owned()) }
    }

    /// Fails if the connection was cut; else the task is woken when it is.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests;
