//! A query instance as tests run it.

use super::*;

/// A query instance with a data directory of its own.
pub(super) struct Instance {
    /// Removed at the end.
    pub data: TempDir,
    pub node: Node,
    pub api: QueryApi,
    pub shards: ShardApi,
}

impl Instance {
    /// The only instance.
    pub(super) async fn alone(log: Arc<dyn Log>, config: Config) -> Self {
        let data = TempDir::new().unwrap();
        let node = Node::new(log, data.path(), "here");
        let Query { query_api, shard_api } = Query::start(config, &node).await.unwrap();
        Self { data, node, api: query_api, shards: shard_api }
    }

    /// One of several: it serves what others ask of it.
    pub(super) async fn among(log: Arc<dyn Log>, number: usize, config: Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let data = TempDir::new().unwrap();
        let mut node = Node::new(log, data.path(), format!("query-{number}"));
        node.directory = directory(number);
        node.advertise = Some(format!("http://{}", listener.local_addr().unwrap()));
        Self::serve(data, node, listener, config).await
    }

    pub(super) async fn serve(
        data: TempDir,
        node: Node,
        listener: TcpListener,
        config: Config,
    ) -> Self {
        let query = Query::start(config, &node).await.unwrap();
        let mut routes = tonic::service::RoutesBuilder::default();
        query.add_to(&mut routes);
        let incoming = TcpListenerStream::new(listener);
        let server = Server::builder().add_routes(routes.routes());
        // It ends with the runtime, whatever streams are still open.
        node.tasks.spawn_once("server", async move {
            server.serve_with_incoming(incoming).await?;
            Ok(())
        });
        let Query { query_api, shard_api } = query;
        Self { data, node, api: query_api, shards: shard_api }
    }

    /// The statuses that the instance has read.
    pub(super) fn board(&self) -> Arc<StatusBoard> {
        self.shards.locator.board()
    }

    /// The value of a metric; its name includes the labels.
    pub(super) fn metric(&self, name: &str) -> u64 {
        let text = self.node.metrics.encode();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |number| number.parse().unwrap())
    }
}

pub(super) fn directory(number: usize) -> String {
    format!("directory-{number}")
}
