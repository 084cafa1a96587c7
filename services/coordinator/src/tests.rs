mod applying;
mod fixture;
mod replaying;
