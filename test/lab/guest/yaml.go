// The part of YAML 1.2 for a cloud-config with files: block mappings and sequences, and all string formats. Strict
// where common parsers differ: it refuses flow collections, tags, anchors, several documents, duplicate keys and
// unquoted non-strings, and characters that some parsers treat as a line break or reject.
package main

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

type nodeKind int

const (
	stringNode nodeKind = iota
	mappingNode
	sequenceNode
	otherNode // null, true, 12: a scalar that is not a string
)

type node struct {
	kind  nodeKind
	value string
	keys  []string // in the order of the document; the value of keys[i] is items[i]
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

// yamlParser reads line by line; lines[at] is the next. For an entry such as `- path: x`, it replaces the dash by a
// blank and reads the line again.
type yamlParser struct {
	lines []string
	at    int
}

func parseYAML(text string) (*node, error) {
	if err := checkCharacters(text); err != nil {
		return nil, err
	}
	// A final line break ends the last line and does not start another one.
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

// checkCharacters accepts characters that all parsers accept unescaped (the readers of libyaml and go-yaml), without
// the line breaks of YAML 1.1.
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

// block reads the node that starts at the current line with exactly this indentation.
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

// nested reads the node below the current, empty line, indented by at least `minimum` columns; null if there is none.
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
