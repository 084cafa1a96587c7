//! Manifests: the list of the files of a stored checkpoint.

use headwater_types::{GenerationId, Offset, PartitionId};
use object_store::path::PathPart;
use serde::{Deserialize, Serialize};

use crate::{Error, Identity};

/// The version of a manifest's format.
const FORMAT: u32 = 1;

/// A checkpoint in the store.
#[derive(Clone, Debug)]
pub struct Manifest {
    url: String,
    identity: Identity,
    position: Offset,
    pub(super) owner: Owner,
    files: Vec<StoredFile>,
    sent: Sent,
}

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// The name in the checkpoint's directory.
    pub name: String,
    /// The path in the store, relative to the shard's path.
    pub path: String,
    pub bytes: u64,
    pub blake3: String,
}

/// Counts the files that an upload transferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Files that were uploaded from this machine.
    pub uploaded: u64,
    pub uploaded_bytes: u64,
    /// Files that were copied from a former owner's path in the store.
    pub copied: u64,
}

impl Sent {
    pub(super) fn add(&mut self, other: Self) {
        self.uploaded += other.uploaded;
        self.uploaded_bytes += other.uploaded_bytes;
        self.copied += other.copied;
    }
}

/// One claim of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) name: String,
    pub(super) epoch: u64,
}

impl Owner {
    pub(super) fn new(name: &str) -> Result<Self, Error> {
        epoch_of(name).map(|epoch| Self { name: name.to_owned(), epoch }).ok_or_else(|| {
            Error::StoreUrl {
                url: name.to_owned(),
                reason: "an owner is an epoch and the name of an instance, such as 7-processor-1"
                    .into(),
            }
        })
    }
}

/// The epoch of an owner, from its name or from the encoded form of its name in a path.
pub(super) fn epoch_of(owner: &str) -> Option<u64> {
    let (epoch, instance) = owner.split_once('-')?;
    (!instance.is_empty()).then(|| epoch.parse().ok()).flatten()
}

/// The encoded form of a name in a path.
pub(super) fn segment(name: &str) -> String {
    PathPart::from(name).as_ref().to_owned()
}

/// The file name of a hand-over manifest; [`hand_over_rank`] reads it.
pub(super) fn hand_over_name(position: Offset, owner: &Owner) -> String {
    format!("{:020}-{}.json", position.0, owner.name)
}

/// The order in which a new owner prefers manifests: the greatest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) epoch: u64,
    pub(super) position: u64,
}

/// The inverse of [`hand_over_name`]; `None` for any other name.
pub(super) fn hand_over_rank(file_name: &str) -> Option<Rank> {
    let (position, owner) = file_name.strip_suffix(".json")?.split_once('-')?;
    Some(Rank { epoch: epoch_of(owner)?, position: position.parse().ok()? })
}

/// The stored form of a manifest.
#[derive(Serialize, Deserialize)]
struct ManifestText {
    format: u32,
    generation: String,
    partition: u32,
    position: u64,
    owner: String,
    files: Vec<StoredFile>,
}

impl Manifest {
    pub(super) fn new(
        url: String,
        identity: Identity,
        position: Offset,
        owner: &Owner,
        mut files: Vec<StoredFile>,
        sent: Sent,
    ) -> Self {
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Self { url, identity, position, owner: owner.clone(), files, sent }
    }

    /// The URL of this manifest. A shard's status reports it as the location of a checkpoint.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The shard's position in this checkpoint.
    pub fn position(&self) -> Offset {
        self.position
    }

    /// The owner that stored it.
    pub fn owner(&self) -> &str {
        &self.owner.name
    }

    pub fn files(&self) -> &[StoredFile] {
        &self.files
    }

    /// The total size of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// The transfers of the upload; zero for a manifest that was read from the store.
    pub fn sent(&self) -> Sent {
        self.sent
    }

    pub(super) fn rank(&self) -> Rank {
        Rank { epoch: self.owner.epoch, position: self.position.0 }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let text = ManifestText {
            format: FORMAT,
            generation: self.identity.generation.to_string(),
            partition: self.identity.partition.0,
            position: self.position.0,
            owner: self.owner.name.clone(),
            files: self.files.clone(),
        };
        // Numbers and strings can always be encoded as JSON.
        serde_json::to_vec_pretty(&text).unwrap_or_default()
    }

    pub(super) fn decode(url: String, bytes: &[u8]) -> Result<Self, String> {
        let text: ManifestText = serde_json::from_slice(bytes)
            .map_err(|error| format!("it is not a manifest: {error}"))?;
        if text.format > FORMAT {
            return Err(format!(
                "it has format {}, and this Headwater knows formats up to {FORMAT}",
                text.format
            ));
        }
        let generation: GenerationId = text
            .generation
            .parse()
            .map_err(|_| format!("its generation is {:?}", text.generation))?;
        let owner =
            Owner::new(&text.owner).map_err(|_| format!("its owner is {:?}", text.owner))?;
        // A fetch creates files with these names, so they must not lead out of its directory.
        let plain = |name: &str| {
            !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
        };
        if let Some(file) = text.files.iter().find(|file| !plain(&file.name)) {
            return Err(format!("it has a file named {:?}", file.name));
        }
        let identity = Identity { generation, partition: PartitionId(text.partition) };
        let position = Offset(text.position);
        Ok(Self::new(url, identity, position, &owner, text.files, Sent::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first released form. Every later version must read it.
    const V1: &str = r#"{"format":1,"generation":"00ff00ff00ff00ff","partition":3,"position":41,"owner":"7-p",
        "files":[{"name":"000012.sst","path":"files/7-p/ab","bytes":5,"blake3":"ab"}]}"#;

    #[test]
    fn a_manifest_of_version_1_is_read_for_ever() {
        let manifest = Manifest::decode("u".into(), V1.as_bytes()).unwrap();
        assert_eq!(manifest.identity().to_string(), "partition 3 of generation 00ff00ff00ff00ff");
        assert_eq!(
            (manifest.position(), manifest.owner(), manifest.bytes()),
            (Offset(41), "7-p", 5)
        );
        let again = Manifest::decode("u".into(), &manifest.encode()).unwrap();
        assert_eq!(again.files(), manifest.files());
        assert_eq!(again.rank(), Rank { epoch: 7, position: 41 });
    }

    #[test]
    fn a_manifest_that_would_write_outside_its_directory_is_refused() {
        for name in ["../x", "/etc/x", "..", ""] {
            let text = V1.replace("000012.sst", name);
            assert!(Manifest::decode("u".into(), text.as_bytes()).is_err(), "{name:?}");
        }
        let newer = V1.replace("\"format\":1", "\"format\":2");
        assert!(Manifest::decode("u".into(), newer.as_bytes()).unwrap_err().contains("format 2"));
        assert!(Manifest::decode("u".into(), &V1.as_bytes()[..90]).is_err(), "torn");
    }

    #[test]
    fn the_later_owner_comes_before_the_greater_position() {
        let rank = |name| hand_over_rank(name).unwrap();
        let owner = Owner::new("10-a-b").unwrap();
        let name = hand_over_name(Offset(5), &owner);
        assert_eq!(name, "00000000000000000005-10-a-b.json");
        assert!(rank(&name) > rank("00000000000000000099-9-z.json"));
        assert!(rank("00000000000000000006-10-a.json") > rank(&name));
        assert_eq!(hand_over_rank("readme.json"), None);
        assert!(Owner::new("processor").is_err() && Owner::new("7-").is_err());
    }
}
