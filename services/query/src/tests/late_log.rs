//! A log whose answers come late.

use headwater_log::{Answer, Appended, EncodedBatch, Ends, FencedWriter, Reader, WriterId};
use tokio::sync::watch;

use super::*;

/// A log whose answers do not come at once, and not at all while it is held.
#[derive(Clone)]
struct LateLog {
    log: MemoryLog,
    held: watch::Sender<bool>,
}

impl LateLog {
    fn later<T: Send + 'static>(&self, answer: Answer<T>) -> Answer<T> {
        let mut held = self.held.subscribe();
        Box::pin(async move {
            tokio::task::yield_now().await;
            let _ = held.wait_for(|held| !held).await;
            answer.await
        })
    }
}

impl Log for LateLog {
    fn create_topic(&self, topic: &Name, spec: TopicSpec) -> Answer<()> {
        self.later(self.log.create_topic(topic, spec))
    }

    fn topic(&self, topic: &Name) -> Answer<Option<TopicSpec>> {
        self.later(self.log.topic(topic))
    }

    fn ends(&self, topic: &Name, partition: PartitionId) -> Answer<Ends> {
        self.later(self.log.ends(topic, partition))
    }

    fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
    ) -> Answer<Appended> {
        self.later(self.log.append(topic, partition, batch))
    }

    fn reader(
        &self,
        topic: &Name,
        partition: PartitionId,
        from: Offset,
    ) -> Answer<Box<dyn Reader>> {
        self.later(self.log.reader(topic, partition, from))
    }

    fn writer(&self, id: &WriterId) -> Answer<Arc<dyn FencedWriter>> {
        self.later(self.log.writer(id))
    }

    fn trim(&self, topic: &Name, partition: PartitionId, before: Offset) -> Answer<()> {
        self.later(self.log.trim(topic, partition, before))
    }

    fn size(&self, topic: &Name, partition: PartitionId, from: Offset, to: Offset) -> Answer<u64> {
        self.later(self.log.size(topic, partition, from, to))
    }
}

#[tokio::test]
async fn a_log_that_answers_late_never_blocks_the_thread_that_serves() {
    let log = MemoryLog::new();
    let late = LateLog { log: log.clone(), held: watch::Sender::new(false) };
    let mut instances = Vec::new();
    for number in 0..2 {
        instances.push(Instance::among(Arc::new(late.clone()), number, eager()).await);
    }
    let mut fixture = Fixture::of(Arc::new(log), instances).await;
    fixture.all_announced(2).await;
    let key = fixture.with_rows().await;
    let generation = fixture.generations[0];
    for instance in 0..2 {
        fixture.ask(instance);
        for _ in 0..3 {
            let answer = fixture.get("per_region", key.clone(), patient()).await.unwrap();
            assert!(answer.row.is_some());
        }
        assert_eq!(fixture.rows("SELECT sum(orders) FROM per_region").await, ["4"]);

        // All run on this thread: if the request blocked it, the log would be held for ever.
        late.held.send_replace(true);
        let mut asked = Box::pin(fixture.get("per_region", key.clone(), patient()));
        tokio::select! {
            answer = &mut asked => panic!("answered without a look at the log: {answer:?}"),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
        late.held.send_replace(false);
        assert!(asked.await.unwrap().row.is_some());
    }
    let Some(Kind::Text(region)) = &key[0].kind else { unreachable!() };
    let token = fixture.order(region, "book", 1, 0).await;
    fixture.process(generation);
    let answer = fixture.get("per_region", key, after(&token)).await.unwrap();
    assert!(show(&answer.row.unwrap()).contains(" +0 2 "));
}
