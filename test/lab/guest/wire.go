// The wire format of protocol buffers, limited to the messages here: varints and length-delimited fields; fixed-width
// fields are skipped. Knows no message types: fields are read by number. (protobuf.dev, "Encoding".)
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
)

var errTruncated = errors.New("protobuf: the message ends within a field")

// value is one occurrence of a field: `number` of a varint, `bytes` of a length-delimited field.
type value struct {
	number uint64
	bytes  []byte
}

// message contains every occurrence of every field, in order.
type message map[int][]value

func decodeMessage(wire []byte) (message, error) {
	m := message{}
	for len(wire) > 0 {
		key, n := binary.Uvarint(wire)
		if n <= 0 {
			return nil, errTruncated
		}
		wire = wire[n:]
		if key>>3 == 0 || key>>3 >= 1<<29 {
			return nil, fmt.Errorf("protobuf: field number %d", key>>3)
		}
		id, v := int(key>>3), value{}
		switch key & 7 {
		case 0:
			if v.number, n = binary.Uvarint(wire); n <= 0 {
				return nil, errTruncated
			}
			m[id] = append(m[id], v)
		case 1:
			n = 8
		case 2:
			length, prefix := binary.Uvarint(wire)
			if prefix <= 0 || length > uint64(len(wire)-prefix) {
				return nil, errTruncated
			}
			n = prefix + int(length)
			v.bytes = wire[prefix:n]
			m[id] = append(m[id], v)
		case 5:
			n = 4
		default:
			return nil, fmt.Errorf("protobuf: wire type %d", key&7)
		}
		if n > len(wire) {
			return nil, errTruncated
		}
		wire = wire[n:]
	}
	return m, nil
}

// last returns the last occurrence, which is the value of a repeated singular field.
func (m message) last(id int) value {
	if values := m[id]; len(values) > 0 {
		return values[len(values)-1]
	}
	return value{}
}

func (m message) has(id int) bool      { return len(m[id]) > 0 }
func (m message) number(id int) uint64 { return m.last(id).number }
func (m message) bytes(id int) []byte  { return m.last(id).bytes }
func (m message) text(id int) string   { return string(m.last(id).bytes) }

func (m message) texts(id int) []string {
	var texts []string
	for _, v := range m[id] {
		texts = append(texts, string(v.bytes))
	}
	return texts
}

// encoder appends fields to a message. Like proto3, it omits zero values.
type encoder []byte

func (e *encoder) number(id int, value uint64) {
	if value != 0 {
		e.varint(uint64(id) << 3)
		e.varint(value)
	}
}

func (e *encoder) text(id int, value string) {
	if value != "" {
		e.message(id, []byte(value))
	}
}

// message writes a length-delimited field even if it is empty, because the presence of a message is significant.
func (e *encoder) message(id int, value []byte) {
	e.varint(uint64(id)<<3 | 2)
	e.varint(uint64(len(value)))
	*e = append(*e, value...)
}

func (e *encoder) varint(value uint64) {
	*e = binary.AppendUvarint(*e, value)
}
