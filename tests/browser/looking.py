"""What tests of pages measure in a browser: contrast of text, names of what can be used, the order of headings. For page.evaluate."""

from __future__ import annotations

CONTRAST_MIN = 4.5  # WCAG 2.2, AA, text of any size

# Of each text that is shown: {text, contrast, of}, with whatever lies behind it, also in drawings.
CONTRASTS = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => {  // the browser's own reading of any way to write a colour
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map(at => top[at] * top[3] + below[at] * (1 - top[3])).concat(1);
  const behind = element => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) {
      if (one instanceof SVGElement) {
        const box = one.tagName === 'g' && one.querySelector('rect');
        if (box) layers.push(rgba(getComputedStyle(box).fill));
      } else layers.push(rgba(getComputedStyle(one).backgroundColor));
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const light = colour => {
    const [r, g, b] = colour.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const seen = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.textContent.trim(), element = walk.currentNode.parentElement;
    if (!text || ['STYLE', 'title'].includes(element.tagName) || !element.checkVisibility({visibilityProperty: true})) continue;
    const style = getComputedStyle(element), colour = rgba(element instanceof SVGElement ? style.fill : style.color);
    if (!colour[3]) continue;  // a zero in a matrix: for those who listen
    const back = behind(element), [a, b] = [light(over(colour, back)), light(back)].sort((x, y) => y - x);
    const contrast = Math.round((a + 0.05) / (b + 0.05) * 100) / 100;
    seen.push({text: text.slice(0, 40), contrast, of: element.className.baseVal ?? element.className});
  }
  return seen;
}"""

# Faults that a screen reader would meet, each as a line: what can be used and has no name, pictures without a text, tables without
# headers, headings that skip a level, landmarks that are missing or twice, ids twice.
FAULTS = """() => {
  const faults = [], shown = one => one.checkVisibility({visibilityProperty: true});
  const told = one => `${one.tagName.toLowerCase()}#${one.id}.${one.className?.baseVal ?? one.className}`;
  const name = one => {
    const ids = (one.getAttribute('aria-labelledby') || '').split(' ').filter(Boolean);
    const by = ids.map(id => document.getElementById(id)?.textContent || '');
    if (by.join('').trim()) return by.join(' ');
    if ((one.getAttribute('aria-label') || '').trim()) return one.getAttribute('aria-label');
    if (one.labels?.length) return [...one.labels].map(label => label.textContent).join(' ');
    const pictures = [...one.querySelectorAll('img')].map(image => image.alt).join(' ');
    return `${one.textContent} ${pictures}`;
  };
  for (const one of document.querySelectorAll('a[href], button, input:not([type=hidden]), select, summary, [tabindex="0"], progress'))
    if (shown(one) && !name(one).trim()) faults.push(`no name: ${told(one)}`);
  for (const one of document.querySelectorAll('img, svg[role=img]'))
    if (!(one.alt ?? one.getAttribute('aria-label') ?? '').trim()) faults.push(`no text: ${told(one)}`);
  for (const one of document.querySelectorAll('svg:not([role=img])'))
    if (!one.parentElement.closest('svg') && one.getAttribute('aria-hidden') !== 'true')
      faults.push(`a drawing that is neither told nor hidden: ${told(one)}`);
  for (const one of document.querySelectorAll('table'))
    if (!one.querySelector('th[scope]')) faults.push(`a table without headers: ${told(one)}`);
  for (const one of document.querySelectorAll('th'))
    if (!one.scope || !one.textContent.trim()) faults.push(`a header without scope or text: ${told(one)} ${one.textContent}`);
  const levels = [...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(one => +one.tagName[1]);
  if (levels[0] !== 1 || levels.filter(one => one === 1).length !== 1) faults.push(`not one h1: ${levels}`);
  levels.forEach((level, at) => { if (at && level > levels[at - 1] + 1) faults.push(`a heading skips a level: ${levels}`); });
  for (const landmark of ['main', 'body > header', 'body > footer'])
    if (document.querySelectorAll(landmark).length !== 1) faults.push(`not one ${landmark}`);
  const navs = [...document.querySelectorAll('nav')].map(one => one.getAttribute('aria-label'));
  if (navs.some(one => !one)) faults.push('a nav without a name');
  const ids = [...document.querySelectorAll('[id]')].map(one => one.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) faults.push(`id twice: ${id}`);
  for (const one of document.querySelectorAll('[aria-labelledby], [aria-describedby]'))
    for (const id of ['aria-labelledby', 'aria-describedby'].flatMap(of => (one.getAttribute(of) || '').split(' ').filter(Boolean)))
      if (!document.getElementById(id)) faults.push(`names what is not there: ${id}`);
  if (!document.documentElement.lang || !document.title.trim()) faults.push('no language or title');
  if (!document.querySelector('a.skip')) faults.push('no skip link');
  return faults;
}"""
