//! XSPF 1: one track, for players that open playlists and show titles. It points at the HLS master, because picture and
//! sound are separate objects and an XSPF playlist cannot say that two tracks belong together.

use super::{HLS_KEY, Links, Playable, links::xml};

pub(super) fn playlist(film: &Playable<'_>, links: &Links<'_>) -> String {
    let (title, location) = (xml(film.title()), xml(&links.absolute(HLS_KEY)));
    let duration_ms = (film.seconds() * 1000.0).round();
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<playlist version="1" xmlns="http://xspf.org/ns/0/">
  <title>{title}</title>
  <trackList>
    <track><location>{location}</location><title>{title}</title><duration>{duration_ms}</duration></track>
  </trackList>
</playlist>
"#
    )
}
