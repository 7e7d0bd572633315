// The part of YAML 1.2 that a cloud-config of files needs: block mappings and sequences, and every way to write a string.
// Strict where readers in the field differ: flow collections, tags, anchors, several documents, duplicate keys and unquoted
// non-strings are refused, as are characters that some reader would take for a line break or not take at all.
package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

type nodeKind int

const (
	stringNode nodeKind = iota
	mappingNode
	sequenceNode
	otherNode // null, true, 12: a scalar that is no string
)

type node struct {
	kind  nodeKind
	value string
	keys  []string // in the document's order; keys[i] has items[i]
	items []*node
}

func (n *node) get(key string) *node {
	for i, k := range n.keys {
		if k == key {
			return n.items[i]
		}
	}
	return nil
}

// yamlParser goes line by line; lines[at] is the next. An entry such as `- path: x` is read by blanking the dash and reading the line again.
type yamlParser struct {
	lines []string
	at    int
}

func parseYAML(text string) (*node, error) {
	if err := checkCharacters(text); err != nil {
		return nil, err
	}
	// A final line break ends the last line; it does not begin another.
	p := &yamlParser{lines: strings.Split(strings.TrimSuffix(text, "\n"), "\n")}
	if !p.skipToContent() {
		return nil, p.fail("the document is empty")
	}
	if strings.HasPrefix(p.lines[p.at], "%") || strings.HasPrefix(p.lines[p.at], "---") {
		return nil, p.fail("directives and document markers are not supported")
	}
	root, err := p.block(indentation(p.lines[p.at]))
	if err != nil {
		return nil, err
	}
	if p.skipToContent() {
		return nil, p.fail("content that belongs to nothing")
	}
	return root, nil
}

// checkCharacters lets pass what every reader takes unescaped (libyaml's and go-yaml's reader), less the line breaks of YAML 1.1.
func checkCharacters(text string) error {
	for i, r := range text {
		_, size := utf8.DecodeRuneInString(text[i:])
		printable := r == '\t' || r == '\n' || r >= 0x20 && r <= 0x7e || r >= 0xa0 && r <= 0xd7ff || r >= 0xe000 && r <= 0xfffd || r >= 0x10000
		if !printable || r == utf8.RuneError && size == 1 || r == '\u2028' || r == '\u2029' || r == '\ufeff' {
			return fmt.Errorf("line %d: character %U must be escaped", 1+strings.Count(text[:i], "\n"), r)
		}
	}
	return nil
}

func (p *yamlParser) fail(format string, arguments ...any) error {
	return fmt.Errorf("line %d: %s", p.at+1, fmt.Sprintf(format, arguments...))
}

func indentation(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }

func isBlankOrComment(line string) bool {
	rest := strings.TrimLeft(line, " \t")
	return rest == "" || rest[0] == '#'
}

func (p *yamlParser) skipToContent() bool {
	for p.at < len(p.lines) && isBlankOrComment(p.lines[p.at]) {
		p.at++
	}
	return p.at < len(p.lines)
}

var keyPattern = regexp.MustCompile(`^([A-Za-z0-9_-]+):( .*)?$`)

// block reads the node whose first line is the current one, at exactly this indentation.
func (p *yamlParser) block(indent int) (*node, error) {
	text := p.lines[p.at][indent:]
	switch {
	case text == "-" || strings.HasPrefix(text, "- "):
		return p.sequence(indent)
	case keyPattern.MatchString(text):
		return p.mapping(indent)
	}
	return p.scalar(indent, indent-1)
}

func (p *yamlParser) sequence(indent int) (*node, error) {
	list := &node{kind: sequenceNode}
	for p.skipToContent() && indentation(p.lines[p.at]) == indent {
		line := p.lines[p.at]
		if line[indent:] != "-" && !strings.HasPrefix(line[indent:], "- ") {
			break
		}
		line = line[:indent] + " " + line[indent+1:]
		p.lines[p.at] = line
		var item *node
		var err error
		if isBlankOrComment(line) {
			item, err = p.nested(indent + 1)
		} else if inner := indentation(line); isScalarStart(line[inner:]) {
			item, err = p.scalar(inner, indent)
		} else {
			item, err = p.block(inner)
		}
		if err != nil {
			return nil, err
		}
		list.items = append(list.items, item)
	}
	return list, p.checkDedent(indent)
}

func isScalarStart(text string) bool {
	return !(text == "-" || strings.HasPrefix(text, "- ") || keyPattern.MatchString(text))
}

func (p *yamlParser) mapping(indent int) (*node, error) {
	m := &node{kind: mappingNode}
	for p.skipToContent() && indentation(p.lines[p.at]) == indent {
		line := p.lines[p.at]
		match := keyPattern.FindStringSubmatch(line[indent:])
		if match == nil {
			if line[indent] == '-' { // the next entry of a sequence that is not indented below its key
				break
			}
			return nil, p.fail("expected `key: value`")
		}
		key := match[1]
		if m.get(key) != nil {
			return nil, p.fail("key %q is given twice", key)
		}
		var value *node
		var err error
		if isBlankOrComment(match[2]) {
			p.at++
			if p.skipToContent() && indentation(p.lines[p.at]) == indent && strings.HasPrefix(p.lines[p.at][indent:], "-") {
				value, err = p.sequence(indent)
			} else {
				value, err = p.nestedHere(indent + 1)
			}
		} else {
			start := indent + len(key) + 1
			start += indentation(line[start:])
			value, err = p.scalar(start, indent)
		}
		if err != nil {
			return nil, err
		}
		m.keys = append(m.keys, key)
		m.items = append(m.items, value)
	}
	return m, p.checkDedent(indent)
}

// nested reads what stands below the current, empty line at `minimum` columns or deeper; nothing there is null.
func (p *yamlParser) nested(minimum int) (*node, error) {
	p.at++
	return p.nestedHere(minimum)
}

func (p *yamlParser) nestedHere(minimum int) (*node, error) {
	if !p.skipToContent() || indentation(p.lines[p.at]) < minimum {
		return &node{kind: otherNode}, nil
	}
	return p.block(indentation(p.lines[p.at]))
}

func (p *yamlParser) checkDedent(indent int) error {
	if p.skipToContent() && indentation(p.lines[p.at]) > indent {
		return p.fail("unexpected indentation")
	}
	return nil
}

// scalar reads the scalar that starts in column `start` of the current line; `parent` is the indentation of the node that holds it.
func (p *yamlParser) scalar(start, parent int) (*node, error) {
	text := p.lines[p.at][start:]
	switch text[0] {
	case '|', '>':
		value, err := p.blockScalar(text, parent)
		return &node{value: value}, err
	case '"', '\'':
		value, err := p.quoted(start, parent)
		return &node{value: value}, err
	case '{', '[', '&', '*', '!', '%', '@', '`', ',', ']', '}', '\t':
		return nil, p.fail("%q cannot start a value here", text[0])
	case '-', '?', ':':
		if len(text) == 1 || text[1] == ' ' {
			return nil, p.fail("%q cannot start a value here", text[0])
		}
	}
	return p.plain(start, parent)
}

// notStrings: what unquoted means something else than text to YAML 1.1 or 1.2.
var notStrings = regexp.MustCompile(`^(~|null|Null|NULL|[Tt]rue|TRUE|[Ff]alse|FALSE|[Yy]es|YES|[Nn]o|NO|[Oo]n|ON|[Oo]ff|OFF|[yYnN]|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])*(\.[0-9_]*)?([eE][-+]?[0-9]+)?|[-+]?\.[0-9]+([eE][-+]?[0-9]+)?|0[xo][0-9a-fA-F_]+|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}.*|<<|=)$`)

func (p *yamlParser) plain(start, parent int) (*node, error) {
	var parts []string
	for first := true; p.at < len(p.lines); first = false {
		line := p.lines[p.at]
		if !first {
			if strings.TrimSpace(line) != "" && indentation(line) <= parent || strings.HasPrefix(strings.TrimSpace(line), "#") {
				break
			}
			start = 0
		}
		text := line[start:]
		comment := strings.Index(text, " #")
		if comment >= 0 {
			text = text[:comment]
		}
		text = strings.Trim(text, " \t")
		if strings.Contains(text, ": ") || strings.HasSuffix(text, ":") {
			return nil, p.fail("a plain value cannot hold a colon before a space")
		}
		parts = append(parts, text)
		p.at++
		if comment >= 0 {
			break
		}
	}
	for len(parts) > 1 && parts[len(parts)-1] == "" {
		parts = parts[:len(parts)-1]
	}
	value := foldFlow(parts)
	if notStrings.MatchString(value) {
		return &node{kind: otherNode, value: value}, nil
	}
	return &node{value: value}, nil
}

// foldFlow joins the trimmed lines of a flow scalar: one break is a space, n empty lines are n breaks (YAML 1.2.2, 6.5).
func foldFlow(lines []string) string {
	var out strings.Builder
	out.WriteString(lines[0])
	breaks := 0
	for _, line := range lines[1:] {
		if line == "" {
			breaks++
			continue
		}
		if breaks == 0 {
			out.WriteByte(' ')
		}
		out.WriteString(strings.Repeat("\n", breaks))
		out.WriteString(line)
		breaks = 0
	}
	return out.String()
}

var blockHeader = regexp.MustCompile(`^([|>])([1-9]?[-+]?|[-+][1-9])( +#.*)? *$`)

// blockScalar reads a literal or folded scalar (YAML 1.2.2, 8.1).
func (p *yamlParser) blockScalar(header string, parent int) (string, error) {
	match := blockHeader.FindStringSubmatch(header)
	if match == nil {
		return "", p.fail("malformed block scalar header %q", header)
	}
	p.at++
	if parent < 0 {
		parent = 0
	}
	indent := 0
	if digit := strings.Trim(match[2], "+-"); digit != "" {
		indent = parent + int(digit[0]-'0')
	} else {
		deepestBlank := 0
		for i := p.at; i < len(p.lines) && indent == 0; i++ {
			if strings.Trim(p.lines[i], " ") != "" {
				indent = indentation(p.lines[i])
			} else if len(p.lines[i]) > deepestBlank {
				deepestBlank = len(p.lines[i])
			}
		}
		switch {
		case indent <= parent: // there are only blank lines, and what follows is not of this scalar
			indent = parent + 1
			if deepestBlank > indent {
				indent = deepestBlank
			}
		case deepestBlank > indent:
			return "", p.fail("a leading blank line is indented deeper than the text")
		}
	}
	var lines []string
	for ; p.at < len(p.lines); p.at++ {
		line := p.lines[p.at]
		if strings.Trim(line, " ") == "" {
			if len(line) > indent {
				lines = append(lines, line[indent:])
			} else {
				lines = append(lines, "")
			}
			continue
		}
		if indentation(line) < indent {
			break
		}
		lines = append(lines, line[indent:])
	}
	trailing := 0
	for len(lines) > 0 && lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
		trailing++
	}
	value := strings.Join(lines, "\n")
	if match[1] == ">" {
		value = foldBlock(lines)
	}
	switch {
	case strings.Contains(match[2], "+"):
		if len(lines) > 0 {
			trailing++
		}
		value += strings.Repeat("\n", trailing)
	case !strings.Contains(match[2], "-") && len(lines) > 0:
		value += "\n"
	}
	return value, nil
}

// foldBlock folds breaks between lines that begin with text; breaks around lines that begin with white space stay (8.1.3).
func foldBlock(lines []string) string {
	var out strings.Builder
	breaks := 0
	spacedBefore := true // nothing precedes the first line that a break could be folded into
	for i, line := range lines {
		if line == "" {
			breaks++
			continue
		}
		spaced := line[0] == ' ' || line[0] == '\t'
		switch {
		case out.Len() == 0 && i == breaks: // only empty lines so far
		case spaced || spacedBefore:
			breaks++
		case breaks == 0:
			out.WriteByte(' ')
		}
		out.WriteString(strings.Repeat("\n", breaks))
		out.WriteString(line)
		breaks, spacedBefore = 0, spaced
	}
	return out.String()
}

// quoted reads a single- or double-quoted scalar, which may go over several lines (7.3).
func (p *yamlParser) quoted(start, parent int) (string, error) {
	quote := p.lines[p.at][start]
	var out strings.Builder
	text := p.lines[p.at][start+1:]
	for {
		// `solid` is where the text that folding must not trim ends: an escaped blank is content.
		var line strings.Builder
		solid, closed, escapedBreak := 0, false, false
		i := 0
		for ; i < len(text) && !closed; i++ {
			c := text[i]
			switch {
			case c == quote && quote == '\'' && i+1 < len(text) && text[i+1] == quote:
				line.WriteByte(quote)
				i++
			case c == quote:
				closed = true
			case c == '\\' && quote == '"' && i+1 == len(text):
				escapedBreak = true
			case c == '\\' && quote == '"':
				decoded, length, err := unescape(text[i+1:])
				if err != nil {
					return "", p.fail("%v", err)
				}
				line.WriteString(decoded)
				i += length
				solid = line.Len()
				continue
			default:
				line.WriteByte(c)
			}
			if c != ' ' && c != '\t' {
				solid = line.Len()
			}
		}
		if closed {
			out.WriteString(line.String())
			if rest := text[i:]; !(isBlankOrComment(rest) && (rest == "" || rest[0] == ' ')) {
				return "", p.fail("something follows the closing quote")
			}
			p.at++
			return out.String(), nil
		}
		if escapedBreak {
			out.WriteString(line.String())
		} else {
			out.WriteString(line.String()[:solid])
		}
		breaks := 0
		for p.at++; p.at < len(p.lines) && strings.Trim(p.lines[p.at], " \t") == ""; p.at++ {
			breaks++
		}
		if p.at == len(p.lines) || indentation(p.lines[p.at]) <= parent {
			return "", p.fail("the quoted string does not end")
		}
		if breaks == 0 && !escapedBreak {
			out.WriteByte(' ')
		}
		out.WriteString(strings.Repeat("\n", breaks))
		text = strings.TrimLeft(p.lines[p.at], " \t")
	}
}

// unescape decodes what follows a backslash in a double-quoted scalar (5.7): the text and how many bytes it took.
func unescape(text string) (string, int, error) {
	const names, values = "0abt\tnvfre \"/\\N_LP", "\x00\a\b\t\t\n\v\f\r\x1b \"/\\\u0085\u00a0\u2028\u2029"
	digits := map[byte]int{'x': 2, 'u': 4, 'U': 8}[text[0]]
	if digits == 0 {
		at := strings.IndexByte(names, text[0])
		if at < 0 {
			return "", 0, fmt.Errorf("escape \\%c is not known", text[0])
		}
		return string([]rune(values)[at]), 1, nil
	}
	if len(text) < 1+digits {
		return "", 0, fmt.Errorf("escape \\%c is cut short", text[0])
	}
	code, err := strconv.ParseUint(text[1:1+digits], 16, 32)
	if err != nil || !utf8.ValidRune(rune(code)) {
		return "", 0, fmt.Errorf("escape \\%s is no character", text[:1+digits])
	}
	return string(rune(code)), 1 + digits, nil
}
