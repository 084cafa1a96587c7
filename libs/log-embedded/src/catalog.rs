//! The catalog: topics, and the claims of writers.

use headwater_log::WriterId;
use headwater_types::{Epoch, Name};
use rocksdb::{DB, DEFAULT_COLUMN_FAMILY_NAME};

use crate::{keys, partition::Topic};

/// What the catalog says.
#[derive(Default)]
pub(crate) struct Catalog {
    pub(crate) topics: Vec<Topic>,
    pub(crate) claims: Vec<(WriterId, Epoch)>,
}

/// Why there is no catalog.
pub(crate) enum Unloadable {
    Damaged(String),
    Failed(rocksdb::Error),
}

pub(crate) fn load_catalog(db: &DB) -> Result<Catalog, Unloadable> {
    let mut catalog = Catalog::default();
    let mut entries = db.raw_iterator();
    entries.seek_to_first();
    while let (Some(key), Some(value)) = (entries.key(), entries.value()) {
        let foreign =
            || Unloadable::Damaged(format!("its catalog holds {key:02x?} = {value:02x?}"));
        let text = || std::str::from_utf8(&key[1..]).map_err(|_| foreign());
        match key.first() {
            Some(&keys::TOPICS) => {
                let name = Name::new(text()?).map_err(|_| foreign())?;
                let (id, spec) = keys::decode_topic(value).ok_or_else(foreign)?;
                if db.cf_handle(&keys::family(id)).is_none() {
                    return Err(Unloadable::Damaged(format!(
                        "the batches of topic {name} are gone"
                    )));
                }
                if spec.partitions > crate::MAX_PARTITIONS {
                    return Err(foreign());
                }
                if catalog.topics.iter().any(|topic| topic.id == id) {
                    return Err(Unloadable::Damaged(format!(
                        "topic {name} shares its number with another one"
                    )));
                }
                catalog.topics.push(Topic::new(id, name, spec));
            }
            Some(&keys::CLAIMS) => {
                let epoch = keys::decode_epoch(value).ok_or_else(foreign)?;
                catalog.claims.push((WriterId(text()?.to_owned()), epoch));
            }
            // Starts are read with their partitions.
            _ => {}
        }
        entries.next();
    }
    entries.status().map_err(Unloadable::Failed)?;
    Ok(catalog)
}

/// Column families whose topic never came to be.
pub(crate) fn drop_orphans(db: &mut DB, catalog: &Catalog) -> Result<(), rocksdb::Error> {
    let families = DB::list_cf(&rocksdb::Options::default(), db.path())?;
    for family in families {
        let known = catalog.topics.iter().any(|topic| topic.family == family);
        if !known && family != DEFAULT_COLUMN_FAMILY_NAME {
            db.drop_cf(&family)?;
        }
    }
    Ok(())
}
