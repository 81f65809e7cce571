"""An HTML page, read."""

from __future__ import annotations

from html.parser import HTMLParser

LOADS = {'src', 'srcset', 'poster', 'data', 'action', 'background'}


class Page(HTMLParser):
    """What a page would load, its text, and its tables, without a browser."""

    def __init__(self, text: str):
        super().__init__()
        self.loads, self.images, self.links, self.tags, self.rows = [], [], [], [], []
        self.text, self.css, self.script, self.closed = '', '', '', True
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.loads += [attrs[k] for k in LOADS & set(attrs)]
        if tag == 'link':
            self.loads.append(attrs.get('href'))
        if tag == 'a':
            self.links.append(attrs.get('href'))
        if tag == 'img':
            self.images.append(attrs)
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th') and self.rows:
            self.rows[-1].append('')
            self.closed = False
        self.css += attrs.get('style') or ''

    def handle_data(self, data):
        inside = self.tags[-1][0] if self.tags else ''
        if inside == 'style':
            self.css += data
        elif inside == 'script':
            self.script += data
        else:
            self.text += data
            if self.rows and self.rows[-1] and not self.closed:
                self.rows[-1][-1] += data.strip()

    def handle_endtag(self, tag):
        self.closed = self.closed or tag in ('td', 'th')

    def row(self, label: str) -> list[str]:
        return next(row for row in self.rows if len(row) > 1 and row[0].startswith(label))
