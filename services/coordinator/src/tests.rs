mod applying;
mod fixture;
mod kafka_like;
mod leading;
mod replaying;
