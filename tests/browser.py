"""Pages in headless Chromium: light and dark, on a laptop's screen."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
_CODE = """
const {chromium} = require('playwright-core');
(async () => {
  const [, , browser, page, folder] = process.argv;
  const b = await chromium.launch({executablePath: browser,
    args: ['--no-sandbox']});
  const said = [], asked = [], seen = {};
  for (const colorScheme of ['light', 'dark']) {
    const p = await b.newPage({colorScheme,
      viewport: {width: 1366, height: 768}});
    p.on('console', m => m.type() === 'error' && said.push(m.text()));
    p.on('pageerror', e => said.push(String(e)));
    p.on('request', r => /^https?:/.test(r.url()) && asked.push(r.url()));
    await p.goto('file://' + page);
    await p.waitForTimeout(1500);
    await p.screenshot({path: `${folder}/${colorScheme}.png`, fullPage: true});
    seen[colorScheme] = await p.evaluate(() => ({
      plots: document.querySelectorAll('.main-svg').length,
      pictures: [...document.images].filter(i => i.naturalWidth > 50).length,
      lines: document.querySelectorAll('.scatterlayer .trace').length,
      wide: document.documentElement.scrollWidth - window.innerWidth,
      back: getComputedStyle(document.body).backgroundColor,
      text: getComputedStyle(document.body).color,
    }));
  }
  await b.close();
  console.log(JSON.stringify({said, asked, seen}));
})();
"""


def look(page: Path, root: Path) -> tuple[dict, dict]:
  """What is seen in light and dark; no errors, nothing fetched, none too wide.

  The screenshots are beside the page. Skips the test where there is no browser.
  """
  modules = root / '.venv' / 'browser' / 'node_modules'
  if CHROMIUM is None or not (modules / 'playwright-core').exists():
    pytest.skip('no Chromium could be installed')
  (page.parent / 'look.js').write_text(_CODE)
  done = subprocess.run(
    ['node', 'look.js', CHROMIUM, str(page), str(page.parent)],
    cwd=page.parent,
    env=os.environ | {'NODE_PATH': str(modules)},
    capture_output=True,
    text=True,
    timeout=240,
  )
  assert done.returncode == 0, done.stderr
  result = json.loads(done.stdout)
  assert result['said'] == [] and result['asked'] == []
  light, dark = result['seen']['light'], result['seen']['dark']
  assert light['wide'] <= 0 and dark['wide'] <= 0
  assert light['text'] != dark['text']
  return light, dark
