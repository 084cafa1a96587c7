mod applying;
mod deleting;
mod fixture;
mod kafka_like;
mod leading;
mod replaying;
