//! Instances over one log, with the processors' part done by hand.

use std::path::PathBuf;

use super::*;

/// Instances over one log.
pub(super) struct Fixture {
    pub log: Arc<dyn Log>,
    pub instances: Vec<Instance>,
    /// The node of the first instance.
    pub node: Node,
    pub api: QueryApi,
    pub stream: StreamDefinition,
    /// A shard stays open as in a processor.
    pub shards: BTreeMap<(GenerationId, u32), Shard>,
    /// The instance whose directory has the shard, and the epoch of its claim.
    pub owners: BTreeMap<(GenerationId, u32), (usize, u64)>,
    pub generations: Vec<GenerationId>,
}

impl Fixture {
    pub(super) async fn start() -> Self {
        Self::start_with(eager()).await
    }

    pub(super) async fn start_with(config: Config) -> Self {
        let log: Arc<dyn Log> = Arc::new(MemoryLog::new());
        let instance = Instance::alone(log.clone(), config).await;
        Self::of(log, vec![instance]).await
    }

    /// Several instances; the shards are shared out among them by the numbers of their partitions.
    pub(super) async fn several(count: usize, config: Config) -> Self {
        let log: Arc<dyn Log> = Arc::new(MemoryLog::new());
        let mut instances = Vec::new();
        for number in 0..count {
            instances.push(Instance::among(log.clone(), number, config.clone()).await);
        }
        let fixture = Self::of(log, instances).await;
        fixture.all_announced(count).await;
        fixture
    }

    pub(super) async fn of(log: Arc<dyn Log>, instances: Vec<Instance>) -> Self {
        let stream = headwater_sql::parse_stream(STREAM).unwrap();
        log.create_topic(&stream.topic, TopicSpec::keep(PARTITIONS)).await.unwrap();
        let fixture = Self {
            log,
            node: instances[0].node.clone(),
            api: instances[0].api.clone(),
            instances,
            stream,
            shards: BTreeMap::new(),
            owners: BTreeMap::new(),
            generations: Vec::new(),
        };
        let declared = StreamDeclared { name: "orders".into(), sql: fixture.stream.sql.clone() };
        fixture.record(Event::StreamDeclared(declared)).await;
        fixture
    }

    /// Waits until every instance has read as many announcements.
    pub(super) async fn all_announced(&self, count: usize) {
        for instance in &self.instances {
            until("all instances are announced", || {
                instance.board().instances(SERVICE).count() == count
            })
            .await;
        }
    }

    /// From now on another instance is asked.
    pub(super) fn ask(&mut self, instance: usize) {
        self.api = self.instances[instance].api.clone();
    }

    pub(super) async fn record(&self, event: Event) {
        let record = ControlRecord { event: Some(event), ..ControlRecord::default() };
        let mut batch = BatchBuilder::new();
        batch.push(0, None, Some(&record.encode_to_vec()), &[]);
        let topic = Name::new(CONTROL_TOPIC).unwrap();
        self.log.append(&topic, PartitionId(0), batch.build().unwrap()).await.unwrap();
    }

    pub(super) fn build(&mut self, sql: &str) -> (GenerationId, Build) {
        let view = headwater_sql::parse_view(sql).unwrap();
        let floor = [Offset::ZERO; PARTITIONS as usize];
        let id = GenerationInputs {
            stream_sql: &self.stream.sql,
            view_sql: &view.sql,
            floor: &floor,
            ordinal: self.generations.len() as u64,
        }
        .digest();
        self.generations.push(id);
        let build = Build {
            id: id.to_string(),
            view: view.name.to_string(),
            stream: "orders".into(),
            view_sql: view.sql.clone(),
            stream_sql: self.stream.sql.clone(),
            floor: (0..PARTITIONS)
                .map(|partition| PartitionOffset { partition, offset: 0 })
                .collect(),
            engine_version: headwater_types::ENGINE_VERSION,
        };
        (id, build)
    }

    /// A view whose shards have not been created.
    pub(super) async fn declare(&mut self, sql: &str) -> GenerationId {
        let (id, generation) = self.build(sql);
        self.record(Event::ViewCreated(ViewCreated { generation: Some(generation) })).await;
        id
    }

    pub(super) async fn open_shards(&mut self, sql: &str, generation: GenerationId) {
        for partition in 0..PARTITIONS {
            let instance = partition as usize % self.instances.len();
            self.own(sql, generation, partition, instance).await;
        }
    }

    /// Opens the shard in a instance's directory, as a processor that claims it.
    pub(super) async fn own(
        &mut self,
        sql: &str,
        generation: GenerationId,
        partition: u32,
        instance: usize,
    ) {
        let view = headwater_sql::parse_view(sql).unwrap();
        let plan = Arc::new(headwater_sql::plan_view(&view, &self.stream).unwrap());
        let path = self.shard_dir(instance, generation, partition);
        let identity = Identity { generation, partition: PartitionId(partition) };
        let db = ShardDb::open(&path, &identity, &Options::default()).unwrap();
        let shard = Shard::open(plan, db).unwrap();
        let key = (generation, partition);
        let epoch = self.owners.get(&key).map_or(1, |(_, epoch)| epoch + 1);
        if self.instances.len() > 1 {
            self.status(&ShardStatus {
                generation: generation.to_string(),
                partition,
                position: shard.position().0,
                processor: format!("processor-{instance}"),
                directory: directory(instance),
                epoch,
                ..ShardStatus::default()
            })
            .await;
        }
        self.shards.insert(key, shard);
        self.owners.insert(key, (instance, epoch));
    }

    pub(super) fn shard_dir(
        &self,
        instance: usize,
        generation: GenerationId,
        partition: u32,
    ) -> PathBuf {
        layout::shard_dir(self.instances[instance].data.path(), generation, PartitionId(partition))
    }

    pub(super) async fn status(&self, status: &ShardStatus) {
        let generation: GenerationId = status.generation.parse().unwrap();
        let key = status_key(generation, PartitionId(status.partition));
        self.say(&key, Some(&status.encode_to_vec())).await;
    }

    /// Writes a record of the status topic.
    pub(super) async fn say(&self, key: &str, value: Option<&[u8]>) {
        let mut batch = BatchBuilder::new();
        batch.push(0, Some(key.as_bytes()), value, &[]);
        let topic = Name::new(STATUS_TOPIC).unwrap();
        self.log.append(&topic, PartitionId(0), batch.build().unwrap()).await.unwrap();
    }

    /// Hands a shard over with a copy of its state. The former owner's copy stays where it is.
    pub(super) async fn hand_over(
        &mut self,
        sql: &str,
        generation: GenerationId,
        partition: u32,
        to: usize,
    ) {
        drop(self.shards.remove(&(generation, partition)).unwrap());
        let from = self.owners[&(generation, partition)].0;
        let (from, into) = (
            self.shard_dir(from, generation, partition),
            self.shard_dir(to, generation, partition),
        );
        let _ = std::fs::remove_dir_all(&into);
        copy(&from, &into);
        self.own(sql, generation, partition, to).await;
    }

    pub(super) async fn create(&mut self, sql: &str) -> GenerationId {
        let id = self.declare(sql).await;
        self.open_shards(sql, id).await;
        id
    }

    /// A generation that is built beside the serving one.
    pub(super) async fn replay(&mut self, sql: &str, replaces: GenerationId) -> GenerationId {
        let (id, generation) = self.build(sql);
        let replay_id = ReplayId::of(&Name::new(&generation.view).unwrap(), 1).to_string();
        let started = ReplayStarted {
            replay_id,
            generation: Some(generation),
            replaces: replaces.to_string(),
            options: None,
        };
        self.record(Event::ReplayStarted(started)).await;
        self.open_shards(sql, id).await;
        id
    }

    /// Records all that leads to the first swap.
    pub(super) async fn compare(&self) {
        let replay_id = "per_region-1".to_owned();
        let fence =
            (0..PARTITIONS).map(|partition| PartitionOffset { partition, offset: 0 }).collect();
        self.record(Event::AlignRequested(AlignRequested { replay_id: replay_id.clone() })).await;
        self.record(Event::FenceNamed(FenceNamed { replay_id: replay_id.clone(), fence })).await;
        self.record(Event::DiffRecorded(DiffRecorded {
            replay_id,
            report: Some(DiffReport::default()),
            verdict: Verdict::Pass as i32,
        }))
        .await;
    }

    pub(super) async fn swap(&self, number: u32, from: GenerationId, to: GenerationId, undo: bool) {
        let replay = ReplayId::from("per_region-1");
        let (swap_id, replay_id) = (replay.swap(number).to_string(), replay.to_string());
        let (from, to) = (from.to_string(), to.to_string());
        self.record(Event::SwapRequested(SwapRequested {
            swap_id: swap_id.clone(),
            view: "per_region".into(),
            from: from.clone(),
            to: to.clone(),
            replay_id: replay_id.clone(),
            undo,
            reason: String::new(),
        }))
        .await;
        let mut fence = Vec::new();
        for partition in 0..PARTITIONS {
            let ends = self.log.ends(&self.stream.topic, PartitionId(partition)).await;
            fence.push(PartitionOffset { partition, offset: ends.unwrap().end.0 });
        }
        self.record(Event::Swapped(Swapped {
            swap_id,
            view: "per_region".into(),
            from,
            to,
            epoch: u64::from(number) + 1,
            fence,
            replay_id,
            undo,
            retain_until_ms: 0,
        }))
        .await;
    }

    /// Appends an order to the partition of its region.
    pub(super) async fn order(&self, region: &str, kind: &str, amount: i64, minute: i64) -> Token {
        let ts = (START + minute * MINUTE) / 1_000;
        let event = format!(
            r#"{{"region":"{region}","kind":"{kind}","amount":{amount},"price":{amount}.25,"ts":{ts}}}"#
        );
        let partition = partition_for_key(region.as_bytes(), PARTITIONS);
        let mut batch = BatchBuilder::new();
        batch.push(ts, Some(region.as_bytes()), Some(event.as_bytes()), &[]);
        let append = self.log.append(&self.stream.topic, partition, batch.build().unwrap());
        let mut token = Token::new(self.stream.name.clone());
        token.cover(partition, append.await.unwrap().first());
        token
    }

    /// Applies and commits all that is in the log.
    pub(super) fn process(&mut self, generation: GenerationId) {
        for partition in 0..PARTITIONS {
            let shard = self.shards.get_mut(&(generation, partition)).unwrap();
            let topic = &self.stream.topic;
            let reader = self.log.reader(topic, PartitionId(partition), shard.position());
            let mut reader = block_on(reader).unwrap();
            while let Some(chunk) = reader.read(1 << 20, Duration::ZERO).unwrap() {
                shard.apply(&chunk, None).unwrap();
            }
            shard.commit().unwrap();
        }
    }

    /// A view with a row in each partition, and the key of the one in partition 1.
    pub(super) async fn with_rows(&mut self) -> Vec<Value> {
        let generation = self.create(PER_REGION).await;
        let regions = ["north", "south", "east", "west"];
        for region in regions {
            self.order(region, "book", 1, 0).await;
        }
        self.process(generation);
        let second =
            |region: &&str| partition_for_key(region.as_bytes(), PARTITIONS) == PartitionId(1);
        vec![text(regions.into_iter().find(second).unwrap()), minute(0)]
    }

    pub(super) async fn get(
        &self,
        view: &str,
        key: Vec<Value>,
        freshness: Freshness,
    ) -> Result<GetResponse, Status> {
        let request = GetRequest { view: view.into(), key, freshness: Some(freshness) };
        self.api.get(Request::new(request)).await.map(Response::into_inner)
    }

    /// Asks for a row on another thread.
    pub(super) fn get_aside(&self, request: GetRequest) -> JoinHandle<Result<GetResponse, Status>> {
        let api = self.api.clone();
        tokio::task::spawn_blocking(move || {
            Handle::current().block_on(async move {
                api.get(Request::new(request)).await.map(Response::into_inner)
            })
        })
    }

    pub(super) async fn scan(&self, request: ScanRequest) -> Result<Vec<ScanResponse>, Status> {
        collect(self.api.scan(Request::new(request)).await?.into_inner()).await
    }

    /// Rows of a scan as text.
    pub(super) async fn scanned(&self, request: ScanRequest) -> Vec<String> {
        shown(&self.scan(request).await.unwrap())
    }

    pub(super) async fn sql(&self, sql: &str) -> Result<Vec<QueryResponse>, Status> {
        self.sql_with(QueryRequest { sql: sql.into(), ..QueryRequest::default() }).await
    }

    pub(super) async fn sql_with(
        &self,
        request: QueryRequest,
    ) -> Result<Vec<QueryResponse>, Status> {
        collect(self.api.query(Request::new(request)).await?.into_inner()).await
    }

    /// The rows of a query as text.
    pub(super) async fn rows(&self, sql: &str) -> Vec<String> {
        let parts = self.sql(sql).await.unwrap();
        parts.iter().flat_map(|part| &part.rows).map(show).collect()
    }
}
