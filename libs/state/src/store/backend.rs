//! The object store behind a [`Store`](super::Store): its URL, its paths and its transfers.

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
    error::store_error,
    manifest::{Sent, StoredFile},
    s3, transfer,
};
use crate::{Error, Identity, layout};

pub(super) struct Backend {
    /// The URL without a slash at its end.
    url: String,
    /// The prefix of all paths in the object store.
    prefix: Path,
    kind: BackendKind,
}

enum BackendKind {
    /// A directory, which can share files with a database by hard links.
    Local(LocalFileSystem),
    Remote(Box<dyn ObjectStore>),
}

impl Backend {
    /// `variables` are those of the environment.
    pub(super) fn open(
        text: &str,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Error> {
        let refuse = |reason: String| Error::StoreUrl { url: without_credentials(text), reason };
        let mut url = Url::parse(text).map_err(|error| {
            refuse(format!(
                "it is not a URL ({error}): write file:///directory or s3://bucket/prefix"
            ))
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
                        "the root of the disk cannot be a store: name a directory".into(),
                    ));
                }
                fs::create_dir_all(&directory).map_err(|error| {
                    refuse(format!("{} cannot be created: {error}", directory.display()))
                })?;
                let local = LocalFileSystem::new_with_prefix(&directory)
                    .map_err(|error| refuse(error.to_string()))?
                    .with_automatic_cleanup(true);
                Ok(Self {
                    url: url_text(&url),
                    prefix: Path::ROOT,
                    kind: BackendKind::Local(local),
                })
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
                Ok(Self {
                    url: url_text(&url),
                    prefix,
                    kind: BackendKind::Remote(Box::new(remote)),
                })
            }
            other => Err(refuse(format!(
                "Headwater has no store for {other}://: write file:///directory or s3://bucket/prefix"
            ))),
        }
    }

    /// A store in memory that is used like a remote one.
    #[cfg(test)]
    pub(super) fn in_memory() -> Self {
        let memory = object_store::memory::InMemory::new();
        let prefix = Path::from("some/prefix");
        Self {
            url: "s3://bucket/some/prefix".into(),
            prefix,
            kind: BackendKind::Remote(Box::new(memory)),
        }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn objects(&self) -> &dyn ObjectStore {
        match &self.kind {
            BackendKind::Local(local) => local,
            BackendKind::Remote(remote) => &**remote,
        }
    }

    /// The path below which everything of a shard is stored.
    pub(super) fn shard(&self, identity: &Identity) -> Path {
        let generation = self.prefix.clone().join(identity.generation.to_string().as_str());
        generation.join(identity.partition.to_string().as_str())
    }

    /// The path of a file that a manifest names; `None` if it lies outside of the shard's files.
    pub(super) fn below(&self, shard: &Path, path: &str) -> Option<Path> {
        let inside = path.starts_with("files/");
        inside.then(|| Path::parse(format!("{shard}/{path}")).ok()).flatten()
    }

    pub(super) fn url_of(&self, path: &Path) -> String {
        let mut url = self.url.clone();
        for part in path.parts().skip(self.prefix.parts_count()) {
            url.push('/');
            // A path already encodes special characters with `%`; the URL encodes that `%` in turn.
            url.push_str(&part.as_ref().replace('%', "%25").replace(' ', "%20"));
        }
        url
    }

    /// The inverse of [`Backend::url_of`]; `None` if the URL is outside of this store.
    pub(super) fn path_of(&self, url: &str) -> Option<Path> {
        let rest = url.strip_prefix(&self.url)?.strip_prefix('/')?;
        let inside = Path::from_url_path(rest).ok()?;
        Some(inside.parts().fold(self.prefix.clone(), |path, part| path.join(part)))
    }

    /// The objects below a path that Headwater can have written. Some servers also list directories
    /// as objects, and behave strangely when these are deleted.
    pub(super) async fn list(&self, below: &Path) -> Result<Vec<ObjectMeta>, Error> {
        let ours = |meta: &ObjectMeta| meta.location.filename().is_some_and(is_object);
        let found = self.objects().list(Some(below));
        let found = found.try_filter(|meta| std::future::ready(ours(meta))).try_collect().await;
        found.map_err(|error| store_error(&self.url_of(below), error))
    }

    pub(super) async fn put(&self, path: &Path, bytes: Vec<u8>) -> Result<(), Error> {
        let put = self.objects().put(path, bytes.into()).await;
        put.map(|_| ()).map_err(|error| store_error(&self.url_of(path), error))
    }

    /// Stores a local file, by a copy of `from` inside the store if there is one.
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
                // The source was pruned by its owner or a later one, or this store cannot copy.
                Err(error) => {
                    tracing::debug!(%error, "a file cannot be copied inside the store and is uploaded")
                }
            }
        }
        match &self.kind {
            BackendKind::Local(local) => {
                let target = self.on_disk(local, to)?;
                let file = file.to_path_buf();
                transfer::blocking(move || transfer::link_or_copy(&file, &target)).await?;
            }
            BackendKind::Remote(remote) => {
                let location = self.url_of(to);
                transfer::upload(&**remote, file, bytes, to, &location).await?;
            }
        }
        Ok(Sent { uploaded: 1, uploaded_bytes: bytes, copied: 0 })
    }

    /// Fetches a file to the local disk and verifies it.
    pub(super) async fn load(
        &self,
        from: &Path,
        file: &StoredFile,
        to: &FsPath,
    ) -> Result<(), Error> {
        let location = self.url_of(from);
        let found = match &self.kind {
            BackendKind::Local(local) => {
                let (source, to) = (self.on_disk(local, from)?, to.to_path_buf());
                let location = location.clone();
                transfer::blocking(move || transfer::fetch_from_disk(&source, &to, &location))
                    .await?
            }
            BackendKind::Remote(remote) => {
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

    /// Deletes objects. A missing object counts as deleted.
    pub(super) async fn delete(&self, paths: Vec<Path>) -> Result<(), Error> {
        let paths = stream::iter(paths.into_iter().map(Ok)).boxed();
        let mut deleted = self.objects().delete_stream(paths);
        while let Some(outcome) = deleted.next().await {
            match outcome {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(store_error(&self.url, error)),
            }
        }
        Ok(())
    }

    /// Removes a directory with its contents, also files that are not listed as objects, such as
    /// those of an interrupted upload.
    pub(super) async fn remove_directory(&self, path: &Path) -> Result<(), Error> {
        match self.directory(path)? {
            Some(directory) => transfer::blocking(move || layout::remove(&directory)).await,
            None => Ok(()),
        }
    }

    /// The directory of a path; `None` if this store is not on a disk.
    pub(super) fn directory(&self, path: &Path) -> Result<Option<PathBuf>, Error> {
        match &self.kind {
            BackendKind::Local(local) => self.on_disk(local, path).map(Some),
            BackendKind::Remote(_) => Ok(None),
        }
    }

    fn on_disk(&self, local: &LocalFileSystem, path: &Path) -> Result<PathBuf, Error> {
        local.path_to_filesystem(path).map_err(|error| store_error(&self.url_of(path), error))
    }
}

/// Whether this is a name of a manifest or of a stored file.
fn is_object(name: &str) -> bool {
    name.ends_with(".json") || (name.len() == 64 && name.bytes().all(|it| it.is_ascii_hexdigit()))
}

/// The URL with its credentials masked.
fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let authority = rest.split('/').next().unwrap_or_default();
    match authority.rfind('@') {
        Some(at) => format!("{scheme}://***{}", &rest[at..]),
        None => url.to_owned(),
    }
}

fn url_text(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_names_no_store_is_refused_with_the_forms_that_are_allowed() {
        for (url, reason) in [
            ("ftp://host/x", "file:///directory or s3://bucket/prefix"),
            ("/var/lib/headwater", "file:///directory or s3://bucket/prefix"),
            ("file://host/x", "three slashes"),
            ("file:///", "name a directory"),
            ("s3:///prefix", "names no bucket"),
            ("s3://key:secret@bucket/prefix", "AWS_ACCESS_KEY_ID"),
            ("s3://bucket/prefix?region=x", "must not have ?"),
        ] {
            let error = Backend::open(url, []).err().unwrap().to_string();
            assert!(!error.contains("secret@"), "{error}");
            assert!(error.contains(reason) && error.contains("checkpoints.url"), "{url}: {error}");
        }
    }

    #[test]
    fn a_path_becomes_a_url_and_back() {
        let directory = tempfile::tempdir().unwrap();
        let spaced = format!("file://{}/a%20b/", directory.path().display());
        let local = Backend::open(&spaced, []).unwrap();
        assert!(directory.path().join("a b").is_dir());
        let s3 = Backend::open("s3://bucket/some%20where/deep", []).unwrap();
        for backend in [local, s3] {
            let path = backend.prefix.clone().join("replays").join("odd name~1").join("7-p.json");
            let url = backend.url_of(&path);
            assert!(url.starts_with(&format!("{}/replays/", backend.url())), "{url}");
            assert!(Url::parse(&url).is_ok() && !url.contains(' '), "{url}");
            assert_eq!(backend.path_of(&url), Some(path));
            assert_eq!(backend.path_of(&format!("{}else/x", backend.url())), None);
            assert_eq!(backend.path_of("s3://other/replays"), None);
            assert_eq!(backend.below(&backend.prefix, "files/../../x"), None);
            assert_eq!(backend.below(&backend.prefix, "positions/x"), None);
        }
    }
}
