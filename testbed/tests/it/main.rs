mod player;
mod published;
mod shelf;
