//! SMIL 3.0 Language Profile, valid by its DTD: a `par` of the sequence of parts (each a `switch` of the renditions) and
//! the sound.
//!
//! Two `meta` elements of our own, which other players skip, tell a player that more will come: `starling-parts`
//! (`have/whole`) and `starling-sound` (`none`, `pending`, `ready`).

use std::fmt::Write;

use super::{
    Playable, Timed, Track,
    links::{Links, seconds, xml},
    playable::bit_rate,
};

pub(super) fn document(film: &Playable<'_>, links: &Links<'_>) -> String {
    let base = links.base().map(xml);
    let title = xml(film.title());
    let (parts, total) = (film.parts(), film.total());
    let sound = match (film.sound(), film.sound_pending()) {
        (Some(_), _) => "ready",
        (None, true) => "pending",
        (None, false) => "none",
    };
    let (width, height) = film.tracks()[0].first().map_or((0, 0), |summary| (summary.width, summary.height));
    let xml_base = base.as_ref().map(|base| format!(" xml:base=\"{base}\"")).unwrap_or_default();
    let meta_base = base.map(|base| format!("\n    <meta name=\"base\" content=\"{base}\"/>")).unwrap_or_default();
    let dur = seconds(film.seconds());
    let mut body = String::new();
    for part in 0..parts {
        body.push_str(&alternatives(film.tracks(), part, links));
    }
    let audio = film.sound().map(|sound| {
        let src = xml(&links.reference(&sound.key));
        format!("      <audio src=\"{src}\" type=\"audio/mp4;codecs={}\"/>\n", xml(&sound.summary.codecs))
    });
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE smil PUBLIC "-//W3C//DTD SMIL 3.0 Language//EN" "http://www.w3.org/2008/SMIL30/SMIL30Language.dtd">
<smil xmlns="http://www.w3.org/ns/SMIL" version="3.0" baseProfile="Language"{xml_base}>
  <head>
    <meta name="title" content="{title}"/>{meta_base}
    <meta name="starling-parts" content="{parts}/{total}"/>
    <meta name="starling-sound" content="{sound}"/>
    <layout>
      <root-layout width="{width}" height="{height}" backgroundColor="black"/>
      <region xml:id="picture" width="100%" height="100%" fit="meet"/>
    </layout>
  </head>
  <body>
    <par dur="{dur}s">
      <seq>
{body}      </seq>
{audio}    </par>
  </body>
</smil>
"#,
        audio = audio.unwrap_or_default()
    )
}

/// One part: a `video`, or a `switch` where the first child whose bit rate is allowed wins, so the last has none.
fn alternatives(tracks: &[Track<'_>], part: usize, links: &Links<'_>) -> String {
    let [one] = tracks else {
        let mut text = String::from("        <switch>\n");
        for (n, track) in tracks.iter().enumerate() {
            let _ = writeln!(text, "  {}", video(track, &track.chunks[part], n + 1 < tracks.len(), links));
        }
        return text + "        </switch>\n";
    };
    video(one, &one.chunks[part], false, links) + "\n"
}

fn video(track: &Track<'_>, timed: &Timed<'_>, tested: bool, links: &Links<'_>) -> String {
    let src = xml(&links.reference(&timed.chunk.key));
    let (title, codecs) = (xml(track.name), xml(&timed.chunk.summary.codecs));
    let dur = seconds(timed.seconds());
    let test = match tested {
        true => format!(" systemBitrate=\"{}\"", bit_rate(timed.chunk.size, timed.seconds())),
        false => String::new(),
    };
    format!(
        "        <video src=\"{src}\" type=\"video/mp4;codecs={codecs}\" title=\"{title}\" region=\"picture\" dur=\"{dur}s\"{test} fill=\"freeze\"/>"
    )
}
