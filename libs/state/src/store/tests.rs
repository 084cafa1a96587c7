use std::{
    collections::BTreeMap,
    fs,
    path::{Path as FsPath, PathBuf},
};

use headwater_types::{Offset, PartitionId, Remedy};
use tempfile::TempDir;

use super::*;
use crate::{
    ShardDb, ShardReader, digest, dump,
    shard::tests::{at, identity, open, put, row},
};

/// The variable that names the URL of one more store for these tests, for example of a real S3.
/// Each test leaves a few files under a prefix of its own in that store.
const FURTHER: &str = "HEADWATER_TEST_STORE";

fn local(dir: &TempDir) -> Store {
    Store::open(&format!("file://{}/a%20store", dir.path().display())).unwrap()
}

fn remote() -> Store {
    Store { backend: Arc::new(Backend::in_memory()), shard_locks: Arc::default() }
}

/// A store on a disk, one that is used like S3, and the one of [`FURTHER`] if it is set.
fn stores(dir: &TempDir) -> Vec<Store> {
    let further = std::env::var(FURTHER).ok().map(|url| {
        let own = dir.path().file_name().unwrap().to_str().unwrap();
        Store::open(&format!("{url}/{own}")).unwrap()
    });
    [local(dir), remote()].into_iter().chain(further).collect()
}

/// A shard on one machine.
struct Machine {
    dir: TempDir,
    db: ShardDb,
    checkpoints: u32,
}

impl Machine {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let db = open(&dir.path().join("shard"));
        Self { dir, db, checkpoints: 0 }
    }

    /// A machine that continues from a checkpoint in the store.
    async fn restored(store: &Store, manifest: &Manifest) -> Self {
        let dir = TempDir::new().unwrap();
        store.fetch(manifest, &dir.path().join("shard")).await.unwrap();
        let db = open(&dir.path().join("shard"));
        assert_eq!(db.progress().position, manifest.position());
        Self { dir, db, checkpoints: 0 }
    }

    fn advance(&self, to: u64) {
        let payload: String = (0..400).map(|n| format!("{}", to.wrapping_mul(n * 7 + 1))).collect();
        put(&self.db, at(to), &[("same", row(1, &payload)), (&format!("at-{to}"), row(1, "x"))]);
    }

    fn checkpoint(&mut self) -> (PathBuf, Offset) {
        self.checkpoints += 1;
        let path = self.dir.path().join(format!("checkpoint-{}", self.checkpoints));
        let position = self.db.checkpoint(&path).unwrap().position;
        (path, position)
    }

    async fn store(&mut self, store: &Store, owner: &str, known: Option<&Manifest>) -> Manifest {
        self.store_for(store, owner, Purpose::HandOver, known).await
    }

    async fn store_for(
        &mut self,
        store: &Store,
        owner: &str,
        purpose: Purpose<'_>,
        known: Option<&Manifest>,
    ) -> Manifest {
        let (path, position) = self.checkpoint();
        store.upload(&path, &identity(), position, owner, purpose, known).await.unwrap()
    }

    fn digest(&self) -> [u8; 32] {
        let scratch = self.dir.path().join("scratch");
        let reader = ShardReader::open_live(self.db.path(), &scratch, &identity()).unwrap();
        digest(reader.view()).unwrap()
    }
}

fn contents(directory: &FsPath) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
    });
    entries.collect()
}

/// The paths of everything that is stored for the shard, relative to it.
async fn stored(store: &Store) -> Vec<String> {
    let shard = store.backend.shard(&identity());
    let listed = store.backend.list(&shard).await.unwrap().into_iter();
    let below = |path: Path| path.as_ref()[shard.as_ref().len() + 1..].to_owned();
    let mut paths: Vec<_> = listed.map(|meta| below(meta.location)).collect();
    paths.sort_unstable();
    paths
}

async fn count(store: &Store, prefix: &str) -> usize {
    stored(store).await.iter().filter(|path| path.starts_with(prefix)).count()
}

#[tokio::test]
async fn a_checkpoint_comes_back_byte_by_byte_and_goes_on_as_the_original_does() {
    let dir = TempDir::new().unwrap();
    for store in stores(&dir) {
        let mut one = Machine::new();
        one.advance(5);
        one.db.compact().unwrap();
        one.advance(7);
        let (path, position) = one.checkpoint();
        let stored = store
            .upload(&path, &identity(), position, "1-a", Purpose::HandOver, None)
            .await
            .unwrap();
        assert!(stored.url().starts_with(store.url()) && store.has(stored.url()), "{stored:?}");

        let found = store.newest(&identity()).await.unwrap().unwrap();
        assert_eq!(
            (found.position(), found.owner(), found.url()),
            (Offset(7), "1-a", stored.url())
        );
        let same = store.manifest(stored.url()).await.unwrap();
        assert_eq!((same.files(), same.bytes()), (stored.files(), stored.bytes()));

        let copy = dir.path().join(format!("copy-{}", store.url().len()));
        store.fetch(&found, &copy).await.unwrap();
        assert_eq!(contents(&copy), contents(&path));
        assert!(!copy.with_file_name("copy.partial").exists());

        let two = Machine::restored(&store, &found).await;
        assert_eq!(two.digest(), one.digest());
        for machine in [&one, &two] {
            machine.advance(8);
            machine.db.compact().unwrap();
            machine.advance(9);
        }
        assert_eq!(two.digest(), one.digest());
        let unchanged = dir.path().join(format!("unchanged-{}", store.url().len()));
        store.fetch(&found, &unchanged).await.unwrap();
        assert_eq!(
            contents(&unchanged),
            contents(&path),
            "a restored shard writes into no stored file"
        );
    }
}

#[tokio::test]
async fn a_second_upload_moves_only_what_is_new_and_a_new_owner_takes_over_by_copies() {
    let dir = TempDir::new().unwrap();
    for store in stores(&dir) {
        let mut one = Machine::new();
        one.advance(1);
        one.db.compact().unwrap();
        let first = one.store(&store, "1-a", None).await;
        assert_eq!(first.sent().uploaded, first.files().len() as u64);
        assert_eq!(first.sent().uploaded_bytes, first.bytes());

        one.advance(2);
        let second = one.store(&store, "1-a", Some(&first)).await;
        let new = |file: &&StoredFile| !first.files().iter().any(|old| old.blake3 == file.blake3);
        let new = second.files().iter().filter(new).count();
        assert!(0 < new && new < second.files().len());
        assert_eq!((second.sent().uploaded, second.sent().copied), (new as u64, 0));
        assert_eq!(count(&store, "files/1-a/").await, first.files().len() + new);

        let mut two = Machine::restored(&store, &second).await;
        two.advance(3);
        let third = two.store(&store, "2-b", Some(&second)).await;
        let old = |file: &&StoredFile| second.files().iter().any(|old| old.blake3 == file.blake3);
        let old = third.files().iter().filter(old).count() as u64;
        assert!(old > 0, "the files of the restored database are the stored ones");
        assert_eq!(third.sent().copied, old);
        assert_eq!(third.sent().uploaded, third.files().len() as u64 - old);
        assert!(third.files().iter().all(|file| file.path.starts_with("files/2-b/")), "{third:?}");

        // The files to copy are gone, so they are uploaded.
        store.remove(&identity()).await.unwrap();
        let fourth = two.store(&store, "2-b", Some(&second)).await;
        assert_eq!(
            (fourth.sent().copied, fourth.sent().uploaded),
            (0, fourth.files().len() as u64)
        );
        store.fetch(&fourth, &two.dir.path().join("again")).await.unwrap();
    }
}

#[tokio::test]
async fn files_that_rocksdb_writes_to_again_are_no_links() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = TempDir::new().unwrap();
    let store = local(&dir);
    let mut one = Machine::new();
    one.advance(1);
    // All three lie on one file system.
    let (_, position) = one.checkpoint();
    let path = dir.path().join("checkpoint");
    one.db.checkpoint(&path).unwrap();
    let manifest =
        store.upload(&path, &identity(), position, "1-a", Purpose::HandOver, None).await.unwrap();
    store.fetch(&manifest, &dir.path().join("into")).await.unwrap();
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    for file in manifest.files() {
        let shared =
            inode(path.join(&file.name)) == inode(dir.path().join("into").join(&file.name));
        assert_eq!(shared, file.name.ends_with(".sst"), "{}", file.name);
    }
}

#[tokio::test]
async fn a_damaged_file_is_named_and_leaves_no_directory() {
    let dir = TempDir::new().unwrap();
    for store in stores(&dir) {
        let mut one = Machine::new();
        one.advance(1);
        let manifest = one.store(&store, "1-a", None).await;
        let sst = manifest.files().iter().find(|file| file.name.ends_with(".sst")).unwrap();
        let shard = store.backend.shard(&identity());
        let path = store.backend.below(&shard, &sst.path).unwrap();
        let bytes =
            store.backend.objects().get(&path).await.unwrap().bytes().await.unwrap().to_vec();
        let (mut flipped, mut short) = (bytes.clone(), bytes.clone());
        flipped[bytes.len() / 2] ^= 1;
        short.pop();
        for (bytes, said) in [(flipped, "not those that were stored"), (short, "were stored")] {
            store.backend.put(&path, bytes).await.unwrap();
            let into = dir.path().join("into");
            let error = store.fetch(&manifest, &into).await.unwrap_err();
            assert_eq!(error.remedy(), Remedy::Repair);
            let text = error.to_string();
            assert!(text.contains(said) && text.contains(&sst.name), "{text}");
            assert!(text.contains(&sst.blake3), "{text}");
            let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
            assert!(left.iter().all(|entry| entry.file_name() == "a store"), "{left:?}");
        }
        store.backend.delete(vec![path]).await.unwrap();
        let error = store.fetch(&manifest, &dir.path().join("into")).await.unwrap_err();
        assert!(matches!(error, Error::Gone { .. }), "{error}");
        assert!(!dir.path().join("into").exists() && !dir.path().join("into.partial").exists());
    }
}

#[tokio::test]
async fn nothing_is_fetched_into_a_directory_that_exists() {
    let dir = TempDir::new().unwrap();
    let store = local(&dir);
    let mut one = Machine::new();
    one.advance(1);
    let manifest = one.store(&store, "1-a", None).await;
    let into = dir.path().join("into");
    fs::create_dir(&into).unwrap();
    fs::write(into.join("precious"), "x").unwrap();
    store.fetch(&manifest, &into).await.unwrap_err();
    assert_eq!(contents(&into).len(), 1);
}

#[tokio::test]
async fn the_newest_is_the_furthest_of_the_latest_owner_and_a_torn_one_is_passed_over() {
    let dir = TempDir::new().unwrap();
    for store in stores(&dir) {
        assert!(store.newest(&identity()).await.unwrap().is_none());
        let mut one = Machine::new();
        one.advance(10);
        let early = one.store(&store, "2-b", None).await;
        let latest = async || store.newest(&identity()).await.unwrap().unwrap();
        one.advance(20);
        let further = one.store(&store, "2-b", Some(&early)).await;
        assert_eq!(latest().await.position(), Offset(20));
        let mut former = Machine::new();
        former.advance(30);
        former.store(&store, "1-a", None).await;
        assert_eq!(latest().await.position(), Offset(20), "a former owner's is not preferred");
        former.store_for(&store, "3-c", Purpose::Replay("v-1.1"), None).await;
        assert_eq!(latest().await.position(), Offset(20), "a replay's is not handed over");
        let other = Identity { partition: PartitionId(30), ..identity() };
        assert!(store.newest(&other).await.unwrap().is_none());

        let path = store.backend.path_of(further.url()).unwrap();
        store.backend.put(&path, further.encode()[..40].to_vec()).await.unwrap();
        assert_eq!(latest().await.position(), Offset(10));
        let error = store.manifest(further.url()).await.unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
    }
}

#[tokio::test]
async fn pruning_leaves_what_some_manifest_has_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    for store in stores(&dir) {
        let mut one = Machine::new();
        let mut manifests = Vec::new();
        for position in 1..=4 {
            one.advance(position);
            manifests.push(one.store(&store, "5-a", manifests.last()).await);
        }
        one.advance(5);
        let kept = one.store_for(&store, "5-a", Purpose::Replay("v-1.1"), manifests.last()).await;
        one.advance(6);
        let ended = one.store_for(&store, "5-a", Purpose::Replay("v-1.2"), manifests.last()).await;
        one.db.compact().unwrap();
        one.advance(7);
        let last = one.store(&store, "5-a", manifests.last()).await;

        store.prune(&identity(), &last, &["v-1.1".into()]).await.unwrap();
        let mut expected: Vec<_> =
            last.files().iter().chain(kept.files()).map(|file| file.path.clone()).collect();
        expected.push("positions/00000000000000000007-5-a.json".into());
        expected.push("replays/v-1.1/5-a.json".into());
        expected.sort_unstable();
        expected.dedup();
        assert_eq!(stored(&store).await, expected);
        for manifest in [&last, &kept] {
            let read = store.manifest(manifest.url()).await.unwrap();
            let into = one.dir.path().join(format!("fetched-{}", read.position()));
            store.fetch(&read, &into).await.unwrap();
        }
        for manifest in [&manifests[3], &ended] {
            let error = store.manifest(manifest.url()).await.unwrap_err();
            assert!(matches!(error, Error::Gone { .. }), "{error}");
            assert_eq!(error.remedy(), Remedy::Retry);
        }
        // A call that keeps an older checkpoint removes nothing.
        store.prune(&identity(), &manifests[1], &[]).await.unwrap();
        assert_eq!(stored(&store).await, expected);
        store.remove(&identity()).await.unwrap();
        assert_eq!(stored(&store).await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn an_upload_that_dies_halfway_is_no_checkpoint_and_is_taken_up_or_pruned() {
    let dir = TempDir::new().unwrap();
    let store = local(&dir);
    let mut one = Machine::new();
    one.advance(1);
    let (path, position) = one.checkpoint();
    // A file takes the name of the directory that the manifest needs.
    let shard = store.backend.directory(&store.backend.shard(&identity())).unwrap().unwrap();
    fs::create_dir_all(&shard).unwrap();
    fs::write(shard.join("positions"), "in the way").unwrap();
    store.upload(&path, &identity(), position, "1-a", Purpose::HandOver, None).await.unwrap_err();
    fs::remove_file(shard.join("positions")).unwrap();
    let files = count(&store, "files/1-a/").await;
    assert!(files > 0 && store.newest(&identity()).await.unwrap().is_none());
    let halfway = shard.join("files").join("1-a").join("abc#0");
    fs::write(&halfway, "written halfway").unwrap();

    // The same owner reuses these files; another owner removes them.
    let again = store
        .upload(&path, &identity(), position, "1-a", Purpose::Replay("v-1.1"), None)
        .await
        .unwrap();
    assert_eq!(again.sent().uploaded, 0);
    store.fetch(&again, &one.dir.path().join("into")).await.unwrap();
    let next = one.store(&store, "2-b", None).await;
    store.prune(&identity(), &next, &[]).await.unwrap();
    assert_eq!(count(&store, "files/1-a/").await, 0);
    assert!(!halfway.exists() && !halfway.parent().unwrap().exists());
}

/// The process of owner 1 was suspended, and does not know that owner 2 has the shard.
#[tokio::test]
async fn a_former_owner_can_break_nothing_of_the_new_one() {
    let dir = TempDir::new().unwrap();
    for store in stores(&dir) {
        let mut former = Machine::new();
        former.advance(100);
        let handed_over = former.store(&store, "1-a", None).await;
        let mut owner = Machine::restored(&store, &handed_over).await;
        former.advance(120);
        let unaware = former.store(&store, "1-a", Some(&handed_over)).await;
        owner.advance(150);
        let present = owner.store(&store, "2-b", Some(&handed_over)).await;
        let replay = owner.store_for(&store, "2-b", Purpose::Replay("v-1.1"), Some(&present)).await;

        // It prunes everything that it considers superfluous, including the files that its
        // successor restored from.
        store.prune(&identity(), &unaware, &[]).await.unwrap();
        assert!(matches!(store.manifest(handed_over.url()).await, Err(Error::Gone { .. })));
        for manifest in [&present, &replay] {
            let manifest = store.manifest(manifest.url()).await.unwrap();
            let into = owner.dir.path().join(format!("fetched-{}", manifest.url().len()));
            store.fetch(&manifest, &into).await.unwrap();
        }
        // The new owner prunes while the former one is about to write a manifest.
        store.prune(&identity(), &present, &["v-1.1".into()]).await.unwrap();
        assert_eq!(count(&store, "files/1-a/").await, 0);
        let late = store.backend.path_of(unaware.url()).unwrap();
        store.backend.put(&late, unaware.encode()).await.unwrap();
        former.advance(1_000);
        let further = former.store(&store, "1-a", Some(&unaware)).await;
        store.prune(&identity(), &further, &[]).await.unwrap();
        let newest = store.newest(&identity()).await.unwrap().unwrap();
        assert_eq!((newest.owner(), newest.position()), ("2-b", Offset(150)));
        let third = Machine::restored(&store, &newest).await;
        assert_eq!(third.digest(), owner.digest());
        assert_eq!(count(&store, "replays/").await, 1, "the new owner's checkpoint stays");
    }
}

#[tokio::test]
async fn a_former_owner_leaves_the_files_that_the_new_one_is_about_to_name() {
    let dir = TempDir::new().unwrap();
    for store in stores(&dir) {
        let mut former = Machine::new();
        former.advance(1);
        let handed_over = former.store(&store, "1-a", None).await;
        let mut owner = Machine::restored(&store, &handed_over).await;
        owner.advance(2);
        let upload = owner.store(&store, "2-b", Some(&handed_over)).await;
        // The state before the manifest is written.
        let path = store.backend.path_of(upload.url()).unwrap();
        store.backend.delete(vec![path.clone()]).await.unwrap();
        former.advance(3);
        let further = former.store(&store, "1-a", Some(&handed_over)).await;
        store.prune(&identity(), &further, &[]).await.unwrap();
        store.backend.put(&path, upload.encode()).await.unwrap();
        let newest = store.newest(&identity()).await.unwrap().unwrap();
        assert_eq!(newest.owner(), "2-b");
        assert_eq!(Machine::restored(&store, &newest).await.digest(), owner.digest());
    }
}

#[tokio::test]
async fn a_new_owner_whose_predecessors_files_vanish_under_it_uploads_its_own() {
    let dir = TempDir::new().unwrap();
    for store in stores(&dir) {
        let mut former = Machine::new();
        former.advance(1);
        let handed_over = former.store(&store, "1-a", None).await;
        let mut owner = Machine::restored(&store, &handed_over).await;
        former.advance(2);
        former.db.compact().unwrap();
        let further = former.store(&store, "1-a", Some(&handed_over)).await;
        store.prune(&identity(), &further, &[]).await.unwrap();
        owner.advance(3);
        let own = owner.store(&store, "2-b", Some(&handed_over)).await;
        assert!(own.sent().uploaded > 0);
        let restored = Machine::restored(&store, &own).await;
        assert_eq!(restored.digest(), owner.digest());
    }
}

#[tokio::test]
async fn a_large_file_goes_in_parts_and_comes_back() {
    let dir = TempDir::new().unwrap();
    for store in stores(&dir) {
        let mut one = Machine::new();
        one.advance(1);
        let (path, position) = one.checkpoint();
        let bytes: Vec<u8> =
            (0..20_000_003u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        fs::write(path.join("999999.sst"), &bytes).unwrap();
        // The sizes of exactly one part, of an empty file, and of one byte.
        for (name, length) in [("999998.sst", 8 << 20), ("999997.sst", 0), ("999996.sst", 1)] {
            fs::write(path.join(name), &bytes[..length]).unwrap();
        }
        let manifest = store
            .upload(&path, &identity(), position, "1-a", Purpose::HandOver, None)
            .await
            .unwrap();
        let into = one.dir.path().join("into");
        store.fetch(&manifest, &into).await.unwrap();
        assert!(contents(&into) == contents(&path));
    }
}

#[tokio::test]
async fn what_a_checkpoint_in_the_store_holds_can_be_read_as_a_checkpoint() {
    let dir = TempDir::new().unwrap();
    for store in stores(&dir) {
        let mut one = Machine::new();
        one.advance(4);
        let manifest = one.store_for(&store, "1-a", Purpose::Replay("v-1.1"), None).await;
        let into = one.dir.path().join("fetched");
        store.fetch(&manifest, &into).await.unwrap();
        let reader = ShardReader::open_checkpoint(&into, &identity()).unwrap();
        assert_eq!(dump(reader.view()).unwrap().progress, at(4));
        let other = Store::open(&format!("file://{}/other", dir.path().display())).unwrap();
        let error = other.manifest(manifest.url()).await.unwrap_err();
        assert_eq!(error.remedy(), Remedy::Correct);
        assert!(error.to_string().contains("same `checkpoints.url`"), "{error}");
    }
}

#[tokio::test]
async fn an_owner_needs_an_epoch_and_a_directory_a_checkpoint() {
    let dir = TempDir::new().unwrap();
    let store = local(&dir);
    let mut one = Machine::new();
    one.advance(1);
    let (path, position) = one.checkpoint();
    let upload = |path: PathBuf, owner: &'static str| {
        let store = store.clone();
        async move {
            store
                .upload(&path, &identity(), position, owner, Purpose::HandOver, None)
                .await
                .unwrap_err()
        }
    };
    assert_eq!(upload(path, "processor").await.remedy(), Remedy::Correct);
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(matches!(upload(empty, "1-a").await, Error::Missing { .. }));
}
