mod applying;
mod fixture;
mod leading;
mod remote;
mod replaying;
