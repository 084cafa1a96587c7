//! Where a store lies: its URL, its paths, and the object store behind it.

use std::{
    fs,
    path::{Path as FsPath, PathBuf},
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{
    ObjectMeta, ObjectStore, ObjectStoreExt as _, local::LocalFileSystem, path::Path,
};
use url::Url;

use super::{
    failure::failed,
    manifest::{Sent, StoredFile},
    s3, transfer,
};
use crate::{Error, Identity, layout};

pub(super) struct Place {
    /// Without a slash at its end.
    url: String,
    /// What comes before all paths in the object store.
    prefix: Path,
    kind: Kind,
}

enum Kind {
    /// Directories, which can share files by hard links.
    Local(LocalFileSystem),
    Remote(Box<dyn ObjectStore>),
}

impl Place {
    /// `variables` as the process has them in its environment.
    pub(super) fn open(
        text: &str,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Error> {
        let refuse = |reason: String| Error::StoreUrl { url: shown(text), reason };
        let mut url = Url::parse(text).map_err(|error| {
            refuse(format!("it is no URL ({error}): write file:///directory or s3://bucket/prefix"))
        })?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(refuse("it must not have ? or #: write %3F or %23 for them".into()));
        }
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty();
        }
        match url.scheme() {
            "file" => {
                let directory = url.to_file_path().map_err(|()| {
                    refuse("a directory is written file:///directory, with three slashes".into())
                })?;
                if directory.parent().is_none() {
                    return Err(refuse(
                        "the root of the disk is no place for it: name a directory".into(),
                    ));
                }
                fs::create_dir_all(&directory).map_err(|error| {
                    refuse(format!("{} cannot be created: {error}", directory.display()))
                })?;
                let local = LocalFileSystem::new_with_prefix(&directory)
                    .map_err(|error| refuse(error.to_string()))?
                    .with_automatic_cleanup(true);
                Ok(Self { url: text_of(&url), prefix: Path::ROOT, kind: Kind::Local(local) })
            }
            "s3" => {
                let bucket = url.host_str().filter(|bucket| !bucket.is_empty());
                let bucket = bucket
                    .ok_or_else(|| refuse("it names no bucket: write s3://bucket/prefix".into()))?;
                if !url.username().is_empty() || url.password().is_some() || url.port().is_some() {
                    return Err(refuse(
                        "credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and another address \
                         from AWS_ENDPOINT"
                            .into(),
                    ));
                }
                let prefix =
                    Path::from_url_path(url.path()).map_err(|error| refuse(error.to_string()))?;
                let remote = s3::open(bucket, variables).map_err(refuse)?;
                Ok(Self { url: text_of(&url), prefix, kind: Kind::Remote(Box::new(remote)) })
            }
            other => Err(refuse(format!(
                "{other}:// is no store that Headwater knows: write file:///directory or s3://bucket/prefix"
            ))),
        }
    }

    /// A store in memory, which is spoken to as to a remote one.
    #[cfg(test)]
    pub(super) fn in_memory() -> Self {
        let memory = object_store::memory::InMemory::new();
        let prefix = Path::from("some/prefix");
        Self { url: "s3://bucket/some/prefix".into(), prefix, kind: Kind::Remote(Box::new(memory)) }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn objects(&self) -> &dyn ObjectStore {
        match &self.kind {
            Kind::Local(local) => local,
            Kind::Remote(remote) => &**remote,
        }
    }

    /// All that belongs to a shard.
    pub(super) fn shard(&self, identity: &Identity) -> Path {
        let generation = self.prefix.clone().join(identity.generation.to_string().as_str());
        generation.join(identity.partition.to_string().as_str())
    }

    /// The place that a manifest names for a file of a shard.
    pub(super) fn below(&self, shard: &Path, path: &str) -> Option<Path> {
        let inside = path.starts_with("files/");
        inside.then(|| Path::parse(format!("{shard}/{path}")).ok()).flatten()
    }

    pub(super) fn url_of(&self, path: &Path) -> String {
        let mut url = self.url.clone();
        for part in path.parts().skip(self.prefix.parts_count()) {
            url.push('/');
            // A path spells what it cannot have with `%`, which is spelled in the URL in turn.
            url.push_str(&part.as_ref().replace('%', "%25").replace(' ', "%20"));
        }
        url
    }

    /// `None`: it does not lie here.
    pub(super) fn path_of(&self, url: &str) -> Option<Path> {
        let rest = url.strip_prefix(&self.url)?.strip_prefix('/')?;
        let inside = Path::from_url_path(rest).ok()?;
        Some(inside.parts().fold(self.prefix.clone(), |path, part| path.join(part)))
    }

    /// The objects below a path that can be ours. Some servers list directories as if they were objects too, and do
    /// strange things when these are to be removed.
    pub(super) async fn list(&self, below: &Path) -> Result<Vec<ObjectMeta>, Error> {
        let ours = |meta: &ObjectMeta| meta.location.filename().is_some_and(is_object);
        let found = self.objects().list(Some(below));
        let found = found.try_filter(|meta| std::future::ready(ours(meta))).try_collect().await;
        found.map_err(|error| failed(&self.url_of(below), error))
    }

    pub(super) async fn put(&self, path: &Path, bytes: Vec<u8>) -> Result<(), Error> {
        let put = self.objects().put(path, bytes.into()).await;
        put.map(|_| ()).map_err(|error| failed(&self.url_of(path), error))
    }

    /// Brings a file of ours to the store, from a place in it if it is there already.
    pub(super) async fn store(
        &self,
        file: &FsPath,
        bytes: u64,
        to: &Path,
        from: Option<&Path>,
    ) -> Result<Sent, Error> {
        if let Some(from) = from {
            match self.objects().copy(from, to).await {
                Ok(()) => return Ok(Sent { copied: 1, ..Sent::default() }),
                // Its owner, or a later one, has pruned it; or this store cannot copy.
                Err(error) => {
                    tracing::debug!(%error, "a file is uploaded, for it cannot be copied")
                }
            }
        }
        match &self.kind {
            Kind::Local(local) => {
                let target = self.on_disk(local, to)?;
                let file = file.to_path_buf();
                transfer::blocking(move || transfer::link_or_copy(&file, &target)).await?;
            }
            Kind::Remote(remote) => {
                let location = self.url_of(to);
                transfer::upload(&**remote, file, bytes, to, &location).await?;
            }
        }
        Ok(Sent { uploaded: 1, uploaded_bytes: bytes, copied: 0 })
    }

    /// Brings a file of the store to ours, and makes sure that it is the one that was stored.
    pub(super) async fn load(
        &self,
        from: &Path,
        file: &StoredFile,
        to: &FsPath,
    ) -> Result<(), Error> {
        let location = self.url_of(from);
        let found = match &self.kind {
            Kind::Local(local) => {
                let (source, to) = (self.on_disk(local, from)?, to.to_path_buf());
                let location = location.clone();
                transfer::blocking(move || transfer::take(&source, &to, &location)).await?
            }
            Kind::Remote(remote) => {
                transfer::download(&**remote, from, file.bytes, to, &location).await?
            }
        };
        let detail = match found {
            (bytes, _) if bytes != file.bytes => {
                format!("it has {bytes} bytes, and {} were stored", file.bytes)
            }
            (_, blake3) if blake3 != file.blake3 => {
                "its bytes are not those that were stored".into()
            }
            _ => return Ok(()),
        };
        Err(Error::Damaged {
            location,
            detail: format!("{} of the checkpoint: {detail}", file.name),
        })
    }

    /// Deletes; what is not there is deleted already.
    pub(super) async fn delete(&self, paths: Vec<Path>) -> Result<(), Error> {
        let paths = stream::iter(paths.into_iter().map(Ok)).boxed();
        let mut deleted = self.objects().delete_stream(paths);
        while let Some(outcome) = deleted.next().await {
            match outcome {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(failed(&self.url, error)),
            }
        }
        Ok(())
    }

    /// Directories and files that are no objects, such as what was written halfway.
    pub(super) async fn remove_directory(&self, path: &Path) -> Result<(), Error> {
        match self.directory(path)? {
            Some(directory) => transfer::blocking(move || layout::remove(&directory)).await,
            None => Ok(()),
        }
    }

    /// `None`: this store has no directories.
    pub(super) fn directory(&self, path: &Path) -> Result<Option<PathBuf>, Error> {
        match &self.kind {
            Kind::Local(local) => self.on_disk(local, path).map(Some),
            Kind::Remote(_) => Ok(None),
        }
    }

    fn on_disk(&self, local: &LocalFileSystem, path: &Path) -> Result<PathBuf, Error> {
        local.path_to_filesystem(path).map_err(|error| failed(&self.url_of(path), error))
    }
}

/// Whether a manifest or a file can have this name.
fn is_object(name: &str) -> bool {
    name.ends_with(".json") || (name.len() == 64 && name.bytes().all(|it| it.is_ascii_hexdigit()))
}

/// Without the credentials that must not be there.
fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let authority = rest.split('/').next().unwrap_or_default();
    match authority.rfind('@') {
        Some(at) => format!("{scheme}://***{}", &rest[at..]),
        None => url.to_owned(),
    }
}

fn text_of(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_of_another_kind_is_refused_with_what_is_possible() {
        for (url, reason) in [
            ("ftp://host/x", "file:///directory or s3://bucket/prefix"),
            ("/var/lib/headwater", "file:///directory or s3://bucket/prefix"),
            ("file://host/x", "three slashes"),
            ("file:///", "name a directory"),
            ("s3:///prefix", "names no bucket"),
            ("s3://key:secret@bucket/prefix", "AWS_ACCESS_KEY_ID"),
            ("s3://bucket/prefix?region=x", "must not have ?"),
        ] {
            let error = Place::open(url, []).err().unwrap().to_string();
            assert!(!error.contains("secret@"), "{error}");
            assert!(error.contains(reason) && error.contains("checkpoints.url"), "{url}: {error}");
        }
    }

    #[test]
    fn urls_and_paths_are_two_spellings_of_one_place() {
        let directory = tempfile::tempdir().unwrap();
        let spaced = format!("file://{}/a%20b/", directory.path().display());
        let local = Place::open(&spaced, []).unwrap();
        assert!(directory.path().join("a b").is_dir());
        let s3 = Place::open("s3://bucket/some%20where/deep", []).unwrap();
        for place in [local, s3] {
            let path = place.prefix.clone().join("replays").join("odd name~1").join("7-p.json");
            let url = place.url_of(&path);
            assert!(url.starts_with(&format!("{}/replays/", place.url())), "{url}");
            assert!(Url::parse(&url).is_ok() && !url.contains(' '), "{url}");
            assert_eq!(place.path_of(&url), Some(path));
            assert_eq!(place.path_of(&format!("{}else/x", place.url())), None);
            assert_eq!(place.path_of("s3://other/replays"), None);
            assert_eq!(place.below(&place.prefix, "files/../../x"), None);
            assert_eq!(place.below(&place.prefix, "positions/x"), None);
        }
    }
}
