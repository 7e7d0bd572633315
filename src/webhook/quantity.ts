/**
 * Resource quantities of Kubernetes, exactly: text in, whole nano-units out. A nano is the smallest unit of Kubernetes.
 * Knows no resource. Source of grammar and rounding: Kubernetes, apimachinery, pkg/api/resource/quantity.go.
 */

/** Nano-units in one unit: of a CPU, of a byte, of a device. */
export const one = 1_000_000_000n;

/** Bytes in a MiB, in nano-units of a byte. */
export const mib = one << 20n;

/** Kubernetes stores a quantity with a binary suffix in an int64. */
const maxBinary = (2n ** 63n - 1n) * one;

/** More than a node can have; a larger value is a mistake, or an attempt to make the parser work for long. */
const maxTextLength = 64;
const maxExponent = 64;

const decimalExponents: Readonly<Record<string, number>> = {
	n: -9,
	u: -6,
	m: -3,
	'': 0,
	k: 3,
	M: 6,
	G: 9,
	T: 12,
	P: 15,
	E: 18,
};
const binaryExponents: Readonly<Record<string, number>> = {Ki: 10, Mi: 20, Gi: 30, Ti: 40, Pi: 50, Ei: 60};
const grammar =
	/^(?<sign>[+\-]?)(?:(?<whole>\d+)(?:\.(?<fraction>\d*))?|\.(?<only>\d+))(?:[eE](?<exponent>[+\-]?\d+)|(?<suffix>[KMGTPE]i|[numkMGTPE]?))$/v;

/**
 * Nano-units of a quantity such as `100m`, `1.5Gi` or `2e3`. A fraction of a nano is rounded away from zero, so that a
 * request never becomes zero.
 * @returns `undefined` if the text is not a quantity, is longer than 64 characters, or has an exponent beyond ±64
 */
export function parseQuantity(text: string): bigint | undefined {
	const groups = text.length > maxTextLength ? undefined : grammar.exec(text)?.groups;
	if (groups === undefined) {
		return undefined;
	}

	const {sign, whole = '', fraction = groups['only'] ?? '', exponent, suffix = ''} = groups;
	const binary = binaryExponents[suffix];
	const power = (exponent === undefined ? (decimalExponents[suffix] ?? 0) : Number(exponent)) - fraction.length + 9;
	if (Math.abs(Number(exponent ?? 0)) > maxExponent) {
		return undefined;
	}

	const digits = BigInt(whole + fraction) << BigInt(binary ?? 0);
	const amount = power >= 0 ? digits * 10n ** BigInt(power) : dividedUp(digits, 10n ** BigInt(-power));
	const capped = binary !== undefined && amount > maxBinary ? maxBinary : amount;
	return sign === '-' ? -capped : capped;
}

/** The amount in steps, rounded away from zero: `inSteps(nanos, mib)` is MiB. */
export function inSteps(amount: bigint, step: bigint): bigint {
	return amount < 0n ? -dividedUp(-amount, step) : dividedUp(amount, step);
}

function dividedUp(amount: bigint, step: bigint): bigint {
	return (amount + step - 1n) / step;
}
