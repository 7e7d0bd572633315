/**
 * What a server serves: definitions and handlers. Types alone. They fit @grpc/proto-loader's definitions by their
 * structure, so that one registration can serve ttrpc and gRPC; no gRPC library is known here.
 */

export interface MethodDefinition {
	/** `/package.Service/Method`. */
	readonly path: string;
	/** Methods that stream are not served over ttrpc: UNIMPLEMENTED. */
	readonly requestStream?: boolean;
	readonly responseStream?: boolean;
	readonly requestDeserialize: (bytes: Buffer) => object;
	readonly responseSerialize: (value: object) => Buffer;
}

/** By the methods' names. */
export type ServiceDefinition = Readonly<Record<string, MethodDefinition>>;

export interface CallContext {
	/**
	 * Aborts when the deadline passes, the connection is gone, or the server closes; never because the call succeeded.
	 */
	readonly signal: AbortSignal;
	/** With its package. */
	readonly service: string;
	readonly method: string;
	/** What was left of the caller's deadline when the call arrived; undefined if it has none. */
	readonly timeoutMs: number | undefined;
	/** As sent; a key's values in their order. */
	readonly metadata: ReadonlyMap<string, readonly string[]>;
}

/**
 * Answers one call. What it throws becomes the call's status.
 * `never`: a handler of any request type fits, for the definition beside it says what the request is.
 */
export type Handler = (request: never, context: CallContext) => Promise<object>;

/** A method of the definition that has no handler is UNIMPLEMENTED. */
export interface Service {
	readonly definition: ServiceDefinition;
	/** By the names that the definition gives to its methods. */
	readonly handlers: Readonly<Record<string, Handler>>;
}

/** A method that can be called. */
export interface Route {
	readonly definition: MethodDefinition;
	readonly handler: Handler;
}
