/**
 * Reads XML from libvirt (which any administrator of the host may have written) into a small immutable tree, and checks
 * text for XML that is sent. Knows no element of libvirt. The parser does not expand entities of a document type, so an
 * answer cannot grow during parsing.
 */
import {create} from 'xmlbuilder2';
import {AdaptorError} from '../core/errors.ts';

export interface XmlElement {
	/** Without the prefix. */
	readonly name: string;
	/** The URI of the namespace, `''` for none. */
	readonly namespace: string;
	readonly attributes: Readonly<Record<string, string>>;
	readonly children: readonly XmlElement[];
	/** All text inside the element, including its descendants, trimmed. */
	readonly text: string;
}

/** Deeper than any document of libvirt; prevents a stack overflow in the recursion below. */
const maxDepth = 64;

/** @throws AdaptorError 'data-loss' for text that is not an XML document */
export function readXml(text: string): XmlElement {
	try {
		return readElement(create(text).root().node, 0);
	} catch (error) {
		throw new AdaptorError({
			code: 'data-loss',
			what: 'Could not read an answer of libvirt: it is not well-formed XML',
			remedy: 'Check the same object with virsh. If virsh shows it correctly, report this error.',
			cause: error,
		});
	}
}

type XmlNode = ReturnType<ReturnType<typeof create>['root']>['node'];

/** DOM, Node.nodeType. The enum of the library cannot be imported with type stripping. */
const elementNode: number = 1;

function readElement(node: XmlNode, depth: number): XmlElement {
	if (depth > maxDepth) {
		throw new RangeError(`More than ${maxDepth} levels of nested elements`);
	}

	const attributes: Record<string, string> = Object.create(null) as Record<string, string>;
	if ('attributes' in node) {
		for (const {localName, value} of node.attributes as Iterable<{localName: string; value: string}>) {
			attributes[localName] = value;
		}
	}

	const children = [...node.childNodes]
		.filter(({nodeType}) => elementNode === (nodeType as number))
		.map(child => readElement(child, depth + 1));
	return {
		name: 'localName' in node ? String(node.localName) : node.nodeName,
		namespace: 'namespaceURI' in node && typeof node.namespaceURI === 'string' ? node.namespaceURI : '',
		attributes,
		children,
		text: (node.textContent ?? '').trim(),
	};
}

/** The first element at a path of names below `element`. */
export function child(element: XmlElement | undefined, ...path: readonly string[]): XmlElement | undefined {
	return path.reduce<XmlElement | undefined>(
		(parent, name) => parent?.children.find(candidate => candidate.name === name),
		element,
	);
}

export function children(element: XmlElement | undefined, name: string): readonly XmlElement[] {
	return element?.children.filter(candidate => candidate.name === name) ?? [];
}

/**
 * Returns the value if libvirt would return it unchanged: XML 1.0 cannot represent most control characters, attribute
 * values lose line breaks and tabs, and libvirt trims some values. Names, ids and paths need none of these.
 * @throws AdaptorError 'invalid-argument' naming the field, never the value
 */
export function checkedText(field: string, value: string, maxLength = 1024): string {
	// \p{Cc} control characters, \p{Zl} and \p{Zp} line separators, \p{Noncharacter_Code_Point} such as U+FFFE. `&#`:
	// xmlbuilder2 4.0.3 reads `&amp;#38;` as `&` (BaseReader._decodeText decodes numeric references in text that it has
	// already decoded).
	const unsafe = /[\p{Cc}\p{Zl}\p{Zp}\p{Noncharacter_Code_Point}\uFEFF]|&#/u;
	if (!value.isWellFormed() || unsafe.test(value) || value.trim() !== value || value.length > maxLength) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: `Could not create the XML for libvirt: ${field} contains characters that XML cannot represent`,
			where: {field},
			remedy: `Use at most ${maxLength} characters without control characters, line breaks, "&#", or spaces at the ends.`,
		});
	}

	return value;
}

/**
 * Escapes the value for xmlbuilder2, in attributes and texts. The library does not escape an ampersand that looks like
 * the start of an entity (4.0.3, nonEntityAmpersandRegex), so that `&amp;` and even `&x;` would be sent unchanged.
 * @throws AdaptorError as `checkedText`
 */
export function xmlText(field: string, value: string): string {
	return checkedText(field, value).replaceAll('&', '&amp;');
}
