// The string formats of YAML: plain, quoted, literal and folded.
package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// scalar reads the scalar at column `start` of the current line; `parent` is the indentation of its parent node.
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

// notStrings are unquoted texts that are not strings in YAML 1.1 or 1.2.
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
		case indent <= parent: // there are only blank lines, and the next line does not belong to this scalar
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

// foldBlock folds breaks between lines that begin with text; breaks around lines that begin with white space are kept
// (8.1.3).
func foldBlock(lines []string) string {
	var out strings.Builder
	breaks := 0
	spacedBefore := true // no text precedes the first line
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

// quoted reads a single- or double-quoted scalar, possibly of several lines (7.3).
func (p *yamlParser) quoted(start, parent int) (string, error) {
	quote := p.lines[p.at][start]
	var out strings.Builder
	text := p.lines[p.at][start+1:]
	for {
		// `solid` is the end of the text that folding must not trim: an escaped blank is content.
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

// unescape decodes the escape sequence after a backslash in a double-quoted scalar (5.7): returns the text and the
// number of bytes read.
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
